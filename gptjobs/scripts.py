"""The Lua scripts of leases.py and store.py, where the keys stand: each is one atomic change of a job's record."""

from collections.abc import Mapping

from gptjobs.job import LEASED, TERMINAL, WAYS, JobState


def _table(ways: Mapping[JobState, JobState]) -> str:
    """A Lua table from state to state."""
    return "({" + ", ".join(f"{before} = '{after}'" for before, after in ways.items()) + "})"


# Takes KEYS[1], the job ARGV[1], from the state it was in to `after`; a queued one gets the serial of a new doorbell.
_ENTER = """
redis.call('HSET', KEYS[1], 'state', after)
redis.call('SREM', KEYS[2], ARGV[1])
redis.call('SREM', KEYS[3], ARGV[1])
if after == 'queued' then
    redis.call('HINCRBY', KEYS[1], 'serial', 1)
    redis.call('SADD', KEYS[2], ARGV[1])
"""
_ENTER += "".join(f"elseif after == '{each}' then redis.call('SADD', KEYS[3], ARGV[1])\n" for each in sorted(LEASED))
_ENTER += "end\n"

# Whether ARGV[2], ARGV[3] (token, nonce) hold the lease of KEYS[1]; opens renew and finish.
_HOLDER_ONLY = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 'missing' end
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[2] then return 'fenced' end
if redis.call('HGET', KEYS[1], 'nonce') ~= ARGV[3] then return 'fenced' end
"""

# The ways by which an attempt leaves its job.
_ENDS = "({" + ", ".join(f"{way} = {_table(WAYS[way])}" for way in ("release", "hold", *sorted(TERMINAL))) + "})"

# Takes the job from its holder by ARGV[4] to ARGV[7] (way, reason, cause, fruitless); closes finish and reap.
_LEAVE = f"""
local after, reason = {_ENDS}[ARGV[4]][redis.call('HGET', KEYS[1], 'state')], ARGV[5]
if not after then return nil end
if ARGV[4] == 'release' and after ~= 'queued' then reason = after end
redis.call('HSET', KEYS[1], 'nonce', '', 'reason', reason, 'cause', ARGV[6], 'fruitless', ARGV[7])
{_ENTER}
"""

# KEYS: job, waiting, leased. ARGV: id, serial, floor, nonce, worker, device
CLAIM = f"""
local after = {_table(WAYS["claim"])}[redis.call('HGET', KEYS[1], 'state')]
if not after then return nil end
if redis.call('HGET', KEYS[1], 'serial') ~= ARGV[2] then return nil end
local token = math.max(tonumber(redis.call('HGET', KEYS[1], 'token')), tonumber(ARGV[3])) + 1
local attempt = redis.call('HINCRBY', KEYS[1], 'attempt', 1)
redis.call('HSET', KEYS[1], 'token', token, 'nonce', ARGV[4], 'beat', 0, 'worker', ARGV[5], 'device', ARGV[6],
           'reason', '', 'cause', '')
{_ENTER}
return {{token, attempt}}
"""

# KEYS: job. ARGV: id, token, nonce, progress or ''
RENEW = (
    _HOLDER_ONLY
    + """
redis.call('HINCRBY', KEYS[1], 'beat', 1)
if ARGV[4] ~= '' then redis.call('HSET', KEYS[1], 'progress', ARGV[4]) end
return redis.call('HMGET', KEYS[1], 'state', 'now')
"""
)

# KEYS: job, waiting, leased. ARGV: id, token, nonce, way, reason, cause, fruitless, progress or ''
FINISH = (
    """
local ended = redis.call('HGET', KEYS[1], 'ended')
if ended and string.sub(ended, 1, #ARGV[3]) == ARGV[3] then return string.sub(ended, #ARGV[3] + 2) end
"""
    + _HOLDER_ONLY
    + _LEAVE
    + """
redis.call('HSET', KEYS[1], 'ended', ARGV[3] .. ' ' .. after)
if ARGV[8] ~= '' then redis.call('HSET', KEYS[1], 'progress', ARGV[8]) end
return after
"""
)

# KEYS: job, waiting, leased. ARGV: id, token, beat, way, reason, cause, fruitless
REAP = f"""
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[2] then return nil end
if redis.call('HGET', KEYS[1], 'beat') ~= ARGV[3] then return nil end
{_LEAVE}
redis.call('HINCRBY', KEYS[1], 'token', 1)
return after
"""


def _ask(way: str) -> str:
    """What a user asks of a job. KEYS: job, waiting, leased. ARGV: id, reason, now ('' or '1')"""
    return f"""
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return nil end
local after = {_table(WAYS[way])}[state] or state
if after == 'cancelling' and ARGV[3] ~= '' then redis.call('HSET', KEYS[1], 'now', ARGV[3]) end
if after == state then return state end
redis.call('HSET', KEYS[1], 'reason', ARGV[2], 'cause', '', 'fruitless', '{{}}',
           'unpaused', '{"1" if way == "unpause" else ""}')
{_ENTER}
return after
"""


ASK = {way: _ask(way) for way in ("cancel", "pause", "unpause")}

# KEYS: job. ARGV: id, priority
PRIORITIZE = """
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return nil end
redis.call('HSET', KEYS[1], 'priority', ARGV[2])
if state == 'queued' then redis.call('HINCRBY', KEYS[1], 'serial', 1) end
return state
"""

# A record where none is. KEYS: job, waiting, leased, jobs. ARGV: id, submitted_at, state, then names and values
ADD = f"""
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], 'serial', 0, 'beat', 0, 'fruitless', '{{}}', unpack(ARGV, 4))
redis.call('ZADD', KEYS[4], ARGV[2], ARGV[1])
local after = ARGV[3]
{_ENTER}
return 1
"""
