"""The worker: takes jobs from the queue and supervises their trainers."""
