"""The Lua scripts of store.py, where the key schema stands: each is one atomic change of a job's record."""

# KEYS: job, waiting, leased. ARGV: id, serial, floor, nonce, worker, device
CLAIM = """
if redis.call('HGET', KEYS[1], 'state') ~= 'queued' then return nil end
if redis.call('HGET', KEYS[1], 'serial') ~= ARGV[2] then return nil end
local token = math.max(tonumber(redis.call('HGET', KEYS[1], 'token')), tonumber(ARGV[3])) + 1
local attempt = redis.call('HINCRBY', KEYS[1], 'attempt', 1)
redis.call('HSET', KEYS[1], 'state', 'running', 'token', token, 'nonce', ARGV[4], 'beat', 0,
           'worker', ARGV[5], 'device', ARGV[6], 'reason', '')
redis.call('SREM', KEYS[2], ARGV[1])
redis.call('SADD', KEYS[3], ARGV[1])
return {token, attempt}
"""

# Whether ARGV[2], ARGV[3] (token, nonce) hold the lease of KEYS[1]; opens renew and finish.
_HOLDER_ONLY = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 'missing' end
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[2] then return 'fenced' end
if redis.call('HGET', KEYS[1], 'nonce') ~= ARGV[3] then return 'fenced' end
"""

# Takes the job out of the leased ones, and rings anew if it is queued `after`; closes finish and reap.
_LEAVE = """
redis.call('SREM', KEYS[3], ARGV[1])
if after == 'queued' then
    redis.call('HINCRBY', KEYS[1], 'serial', 1)
    redis.call('SADD', KEYS[2], ARGV[1])
end
return after
"""

# KEYS: job. ARGV: id, token, nonce, progress or ''
RENEW = (
    _HOLDER_ONLY
    + """
redis.call('HINCRBY', KEYS[1], 'beat', 1)
if ARGV[4] ~= '' then redis.call('HSET', KEYS[1], 'progress', ARGV[4]) end
return redis.call('HGET', KEYS[1], 'state')
"""
)

# KEYS: job, waiting, leased. ARGV: id, token, nonce, state, reason, fruitless, progress or ''
FINISH = (
    """
local ended = redis.call('HGET', KEYS[1], 'ended')
if ended and string.sub(ended, 1, #ARGV[3]) == ARGV[3] then return string.sub(ended, #ARGV[3] + 2) end
"""
    + _HOLDER_ONLY
    + """
local state, after, reason = redis.call('HGET', KEYS[1], 'state'), ARGV[4], ARGV[5]
if state == 'cancelling' and (after == 'queued' or after == 'paused') then
    after, reason = 'cancelled', 'cancelled'
elseif state == 'pausing' and after == 'queued' then
    after, reason = 'paused', 'paused'
end
redis.call('HSET', KEYS[1], 'state', after, 'reason', reason, 'fruitless', ARGV[6], 'nonce', '',
           'ended', ARGV[3] .. ' ' .. after)
if ARGV[7] ~= '' then redis.call('HSET', KEYS[1], 'progress', ARGV[7]) end
"""
    + _LEAVE
)

# KEYS: job, waiting, leased. ARGV: id, token, beat, reason
REAP = (
    """
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[2] then return nil end
if redis.call('HGET', KEYS[1], 'beat') ~= ARGV[3] then return nil end
local state = redis.call('HGET', KEYS[1], 'state')
local after = ({running = 'queued', cancelling = 'cancelled', pausing = 'paused'})[state]
if not after then return nil end
redis.call('HINCRBY', KEYS[1], 'token', 1)
redis.call('HSET', KEYS[1], 'state', after, 'nonce', '', 'reason', ARGV[4])
"""
    + _LEAVE
)

# KEYS: job, waiting. ARGV: id, reason
CANCEL = """
local state = redis.call('HGET', KEYS[1], 'state')
local after = ({queued = 'cancelled', paused = 'cancelled', running = 'cancelling', pausing = 'cancelling'})[state]
if not after then return state end
redis.call('HSET', KEYS[1], 'state', after, 'reason', ARGV[2])
redis.call('SREM', KEYS[2], ARGV[1])
return after
"""

# KEYS: job, jobs, waiting. ARGV: id, submitted_at, spec
SUBMIT = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], 'spec', ARGV[3], 'state', 'queued', 'serial', 1, 'token', 0, 'nonce', '',
           'beat', 0, 'attempt', 0, 'fruitless', 0)
redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])
redis.call('SADD', KEYS[3], ARGV[1])
return 1
"""

# KEYS: job, jobs, leased. ARGV: id, submitted_at, spec, token, nonce, worker, device, state
PUT_BACK = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], 'spec', ARGV[3], 'state', ARGV[8], 'serial', 1, 'token', ARGV[4],
           'nonce', ARGV[5], 'beat', 0, 'attempt', 1, 'fruitless', 0, 'worker', ARGV[6], 'device', ARGV[7])
redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])
redis.call('SADD', KEYS[3], ARGV[1])
return 1
"""
