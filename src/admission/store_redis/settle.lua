-- Releases what was reserved and adds what was used, of many requests at once, exactly once.
-- ARGV: 4 sequence (0 for a mere sign of life), 5 milliseconds that a mark lives, 6 generation with
-- which what this host holds begins anew, or 0, 7 number of moves, then six of each move: field, kind,
-- release, generation, use, window or a bucket's amount. The kind '+' claims what Redis has forgotten:
-- field, kind, amount, generation, -, -.
-- Then the given-up reservations: mark, number of counters, and two of each: field, demand.
-- Answer: epoch, generation.
local sequence, MARK_LIFE, moves = tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[7])
sweep()
local began = epoch()
local mine = enlist(generation(began), began)
keep()

local answer = { began, mine }
if sequence == 0 then return answer end
if sequence <= whole(redis.call('HGET', KEYS[3], 'sequence')) then return answer end
redis.call('HSET', KEYS[3], 'sequence', text(sequence))
if ARGV[6] ~= '0' then
  expel(host)
  mine = tonumber(ARGV[6])
  redis.call('HSET', KEYS[3], 'incarnation', incarnation, 'generation', text(mine))
  enlist(mine, began)
  keep()
  answer[2] = mine
end

-- At most what this host holds: a release never takes another's.
local function release(counter, field, amount)
  if amount == 0 then return end
  local name = 'held ' .. field
  local own = whole(redis.call('HGET', KEYS[3], name))
  amount = math.min(amount, own)
  if own == amount then
    redis.call('HDEL', KEYS[3], name)
  else
    redis.call('HSET', KEYS[3], name, text(own - amount))
  end
  counter.held = math.max(0, counter.held - amount)
end

local at = 8
for _ = 1, moves do
  local field, kind, amount = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2])
  local when, use, window = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5])
  local counter = read(redis.call('HGET', KEYS[1], field), kind, window)
  if kind == '+' then
    if when == mine then
      counter.held = math.min(counter.held + amount, 2 * LIMIT)
      hold(field, amount)
    end
  elseif when == mine then
    release(counter, field, amount)
  end
  if kind == 'b' then
    if counter.c == 0 then counter.c = window end
    use = measured(use, window, counter.c)
  end
  if kind == 'b' or kind == 'c' then counter.a = math.min(counter.a + use, LIMIT) end
  redis.call('HSET', KEYS[1], field, packed(counter))
  at = at + 6
end

while at <= #ARGV do
  local key, parts = KEYS[1] .. ':mark:' .. ARGV[at], tonumber(ARGV[at + 1])
  -- One of another type is overwritten below.
  local mark = redis.pcall('GET', key)
  if type(mark) == 'table' then mark = false end
  at = at + 2
  for _ = 1, parts do
    if mark and tonumber(mark) == mine then
      local counter = read(redis.call('HGET', KEYS[1], ARGV[at]), '', 0)
      release(counter, ARGV[at], tonumber(ARGV[at + 1]))
      redis.call('HSET', KEYS[1], ARGV[at], packed(counter))
    end
    at = at + 2
  end
  -- If it comes only now, it comes too late.
  redis.call('SET', key, 'void', 'PX', MARK_LIFE)
end
return answer
