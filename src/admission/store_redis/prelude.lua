-- What all scripts know. KEYS: 1 counters of the root, 2 hosts by last beat, 3 what this host holds.
-- ARGV: 1 host, 2 incarnation of its process, 3 microseconds after which a silent host is dead.
-- A counter is one field, 'held a b c': bucket (level ns, at us, amount), calendar (used, window, extra),
-- concurrency (-, -, -). All numbers are whole and at most 2^53, where a double is exact.
local LIMIT = 4503599627370496 -- 2^52
local DAY = 86400
local host, incarnation, liveness = ARGV[1], ARGV[2], tonumber(ARGV[3])
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
-- The latest beginning of a window, in seconds, that a host may name.
local SOON = tonumber(clock[1]) + 3600

local function text(number)
  return string.format('%.0f', number)
end

-- Whatever else stands where a number of ours should be is 0.
local function whole(written)
  return tonumber(string.match(written or '', '^%d+$') or '0')
end

-- ceil(n * period / amount) for n <= 2^53, period < 2^48, amount <= 2^40; at most LIMIT. Long division
-- by digits of 12 bits, so that no step passes 2^53.
local function cost(n, period, amount)
  local whole = math.floor(n / amount)
  if whole * period >= LIMIT then return LIMIT end
  local rest, quotient, carry = n - whole * amount, 0, 0
  for place = 3, 0, -1 do
    local digit = math.floor(period / 4096 ^ place) % 4096
    local part = carry * 4096 + rest * digit
    local share = math.floor(part / amount)
    carry = part - share * amount
    quotient = quotient * 4096 + share
  end
  if carry > 0 then quotient = quotient + 1 end
  return math.min(whole * period + quotient, LIMIT)
end

-- The counter as it is now. A bucket leaks by Redis' clock; one that went back loses nothing and holds
-- nobody up. A window that is older than the one in use counts into that, and so does one that is too far
-- ahead; one that is in use and too far ahead is the trace of a wrong clock, and ends with a better one.
local function read(value, kind, window)
  local held, a, b, c = string.match(value or '', '^(%d+) (%d+) (%d+) (%d+)$')
  held, a, b, c = tonumber(held) or 0, tonumber(a) or 0, tonumber(b) or 0, tonumber(c) or 0
  local ahead = kind == 'b' and b > now
  if kind == 'b' then
    a = math.max(0, a - math.max(0, now - b) * 1000)
    b = now
  elseif kind == 'c' and window <= SOON and (window > b or b > SOON) then
    a, b, c = 0, window, 0
  end
  return { held = held, a = a, b = b, c = c, ahead = ahead }
end

-- Nanoseconds of a bucket are worth what its limit made them at that time: a limit that was changed
-- measures the same use anew.
local function measured(ns, was, amount)
  if was == 0 or amount == 0 or was == amount then return ns end
  return math.min(math.floor(ns * (was / amount) + 0.5), LIMIT)
end

local function packed(counter)
  return text(counter.held) .. ' ' .. text(counter.a) .. ' ' .. text(counter.b) .. ' ' .. text(counter.c)
end

-- The time at which these counts began: another one tells that Redis was emptied. Without it nobody
-- knows whose counts these are.
local function epoch()
  local known = whole(redis.call('HGET', KEYS[1], 'epoch'))
  if known > 0 then return known end
  -- Not in any case: after a first write, a script may go on although there is no memory.
  if redis.call('TYPE', KEYS[1]).ok ~= 'none' then redis.call('DEL', KEYS[1]) end
  redis.call('HSET', KEYS[1], 'epoch', text(now))
  return now
end

-- Takes back what a host holds of these counts, not what it held of former ones. Its sequence stays, so
-- that a repeated settlement is still known.
local function expel(name)
  local key = KEYS[1] .. ':host:' .. name
  local all = redis.call('HGETALL', key)
  local counts = redis.call('HGET', KEYS[1], 'epoch') == redis.call('HGET', key, 'epoch')
  for at = 1, #all, 2 do
    local field = string.match(all[at], '^held (.*)$')
    if field then
      local value = counts and redis.call('HGET', KEYS[1], field)
      if value then
        local counter = read(value, '', 0)
        counter.held = math.max(0, counter.held - whole(all[at + 1]))
        redis.call('HSET', KEYS[1], field, packed(counter))
      end
      redis.call('HDEL', key, all[at])
    end
  end
  if #all > 0 then
    redis.call('HSET', key, 'generation', '0')
    redis.call('EXPIRE', key, DAY)
  end
  redis.call('ZREM', KEYS[2], name)
end

-- Dead hosts hold nothing. A beat from the future is the trace of a clock that went back.
local function sweep()
  local beats = redis.call('ZRANGE', KEYS[2], 0, -1, 'WITHSCORES')
  for at = 1, #beats, 2 do
    local beat = tonumber(beats[at + 1])
    if beat + liveness < now then
      expel(beats[at])
    elseif beat > now + liveness then
      redis.call('ZADD', KEYS[2], text(now), beats[at])
    end
  end
end

-- Which generation of what this host holds counts now; 0 for none.
local function generation(began)
  local known = redis.call('HMGET', KEYS[3], 'incarnation', 'generation', 'epoch')
  if known[1] and (known[1] ~= incarnation or whole(known[3]) ~= began) then
    expel(host)
    redis.call('DEL', KEYS[3])
    return 0
  end
  return whole(known[2])
end

-- Longer than a month. What hosts hold outlives the sums it is part of, else nobody could take it back.
local function keep()
  redis.call('EXPIRE', KEYS[1], 40 * DAY)
  redis.call('EXPIRE', KEYS[2], 41 * DAY)
  redis.call('EXPIRE', KEYS[3], 41 * DAY)
end

-- This host holds more of a counter.
local function hold(field, amount)
  local name = 'held ' .. field
  redis.call('HSET', KEYS[3], name, text(whole(redis.call('HGET', KEYS[3], name)) + amount))
end

-- `began`: of the counts that what it holds is part of.
local function enlist(current, began)
  if current == 0 then
    current = now
    redis.call('HSET', KEYS[3], 'incarnation', incarnation, 'generation', text(current), 'epoch', text(began))
    keep()
  end
  redis.call('ZADD', KEYS[2], text(now), host)
  return current
end
