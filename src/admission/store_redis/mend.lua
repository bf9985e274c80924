-- Removes what keeps the other scripts from running: keys of ours of another type. Since they are parts
-- of one whole, all counts of the root begin anew then. Answer: how many keys were of another type.
local removed = 0
local function is_other(key, expected)
  local found = redis.call('TYPE', key).ok
  if found == expected or found == 'none' then return false end
  redis.call('DEL', key)
  removed = removed + 1
  return true
end

if not is_other(KEYS[2], 'zset') then
  for _, name in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
    is_other(KEYS[1] .. ':host:' .. name, 'hash')
  end
end
is_other(KEYS[3], 'hash')
is_other(KEYS[1], 'hash')
-- Hosts notice that the epoch is another one, and claim what they hold.
if removed > 0 then redis.call('DEL', KEYS[1]) end
return removed
