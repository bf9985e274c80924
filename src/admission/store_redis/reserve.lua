-- Reserves over several counters, all or nothing; or only shows them.
-- KEYS: 4 mark of this reservation. ARGV: 4 'reserve' or 'show', 5 milliseconds that a mark lives, then
-- seven of each counter: field, kind, demand, amount, window or cost of the burst, period, shadow.
-- Answer: outcome (1 granted, 0 refused, 2 given up before it came), epoch, generation, and five of each
-- counter as it is afterwards: fits, held, a, b, c.
local OPEN, MARK_LIFE = ARGV[4] == 'reserve', ARGV[5]
sweep()
local began = epoch()
local mine = generation(began)
local fields = {}
for at = 6, #ARGV, 7 do fields[#fields + 1] = ARGV[at] end
local values = redis.call('HMGET', KEYS[1], unpack(fields))

local counters, fits_all = {}, true
for index = 1, #fields do
  local at = 6 + (index - 1) * 7
  local kind, demand, amount = ARGV[at + 1], tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local extra, period = tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5])
  local counter = read(values[index], kind, extra)
  local fits
  if kind == 'b' then
    counter.a, counter.c = measured(counter.a, counter.c, amount), amount
    fits = counter.a + cost(counter.held + demand, period, amount) <= extra
  elseif kind == 'c' then
    fits = counter.a + counter.held + demand <= amount + counter.c
  else
    fits = counter.held + demand <= amount
  end
  counter.fits, counter.demand = fits, demand
  -- Else a bucket that is full when the clock goes back would stay full until the clock is there again.
  if counter.ahead then redis.call('HSET', KEYS[1], fields[index], packed(counter)) end
  if not fits and ARGV[at + 6] == '0' then fits_all = false end
  counters[index] = counter
end

local outcome, known, mark = 0, mine, nil
if OPEN then
  if known == 0 then mine = now end
  if not fits_all then
    mark = redis.call('GET', KEYS[4])
  elseif redis.call('SET', KEYS[4], text(mine), 'PX', MARK_LIFE, 'NX') then
    outcome = 1
  else
    mark = redis.call('GET', KEYS[4])
  end
  if mark == 'void' then
    outcome = 2
  elseif mark then
    -- A cluster's client repeats a question whose answer was lost: it was granted before.
    mine = tonumber(mark)
  end
end
if outcome == 1 then
  enlist(known, began)
  local written = {}
  for index, counter in ipairs(counters) do
    counter.held = math.min(counter.held + counter.demand, 2 * LIMIT)
    written[#written + 1] = fields[index]
    written[#written + 1] = packed(counter)
    hold(fields[index], counter.demand)
  end
  if #written > 0 then redis.call('HSET', KEYS[1], unpack(written)) end
elseif mark and outcome == 0 then
  outcome = 1
end

local answer = { outcome, began, mine }
for _, counter in ipairs(counters) do
  answer[#answer + 1] = counter.fits and 1 or 0
  answer[#answer + 1] = counter.held
  answer[#answer + 1] = counter.a
  answer[#answer + 1] = counter.b
  answer[#answer + 1] = counter.c
end
return answer
