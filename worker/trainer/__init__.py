"""The trainer: one subprocess an attempt, the one door to torch. It never talks to Redis."""
