-- What an operator does to one counter. ARGV: 4 'grant' or 'reset', 5 field, 6 kind, 7 window or a bucket's amount, 8 amount.
local counter = read(redis.call('HGET', KEYS[1], ARGV[5]), ARGV[6], tonumber(ARGV[7]))
if ARGV[4] == 'grant' then
  counter.c = math.min(counter.c + tonumber(ARGV[8]), LIMIT)
else
  counter.a = 0
end
epoch()
redis.call('HSET', KEYS[1], ARGV[5], packed(counter))
keep()
return { counter.a, counter.c }
