#!lua name=gateway_@version@
-- What the gateway asks of one partition, or of one link, in one atomic step. `redis.py` says what is kept where.
-- `sqlite.py` does the same in SQL: whoever changes one changes the other.

local WAITING, DUE, LEASED, PARKED, SENT, SKIPPED, DEAD = 1, 2, 3, 4, 10, 11, 12
local NOT_LATE, LATE_WANTED, LATE = 0, 1, 2

local NEVER = 4611686018427387904 -- 2^62

-- A delivery (field `d<number>` of its webhook). Only one that keeps to a lane has the last two.
local D = {
  event = 1, destination = 2, state = 3, reason = 4, due_at = 5, held_until = 6, attempts = 7, first_try_at = 8,
  fence = 9, late = 10, at = 11, lane = 12,
}
-- What changes of a webhook (field `n`): after the four come the ids of its events.
local N = { mapping = 1, notes = 2, deliveries = 3, payments = 4 }
local EVENTS_FROM = 5
-- A webhook as it came (field `w`).
local W = { source = 1, account = 2, type = 3, id = 4, occurred_at = 5, received_at = 6, test = 7, key = 8 }
-- A claim of a payment under one name. A payment is {keys, claims}.
local C = { name = 1, event_id = 2, webhook = 3, event = 4, held_until = 5, hold = 6, order = 7 }
local KEYS_OF, CLAIMS_OF = 1, 2

local PARTITIONS = 1024

-- While a library loads there is no `redis.call` yet, nor `cmsgpack`.
local function call(...)
  return redis.call(...)
end

local function pack(value)
  return cmsgpack.pack(value)
end

local function unpacked(value)
  return cmsgpack.unpack(value)
end

-- Numbers as text: `..` would round what has more than 14 digits.
local function text(number)
  return string.format('%.0f', number)
end

local function reader(args)
  local at = 0
  local read = {}
  function read.text()
    at = at + 1
    return args[at]
  end
  function read.number()
    at = at + 1
    return tonumber(args[at])
  end
  function read.texts()
    local found = {}
    for index = 1, read.number() do
      found[index] = read.text()
    end
    return found
  end
  function read.rest()
    local found = {}
    while at < #args do
      found[#found + 1] = read.text()
    end
    return found
  end
  return read
end

-- One call's view of its partition. `heads` are the `n` of webhooks that it read, `counted` what it adds to the counts,
-- `fields` and `queued` what is yet to be written of the webhook that it stores, `lanes` where the first may be another.
local function begin(tag)
  return {
    tag = tag, webhook = tag .. ':w:', heads = {}, dirty = {}, counted = {}, due = {}, fields = {}, queued = {},
    lanes = {},
  }
end

local function head(t, webhook)
  local known = t.heads[webhook]
  if known == nil then
    local stored = call('HGET', t.webhook .. webhook, 'n')
    known = stored and unpacked(stored) or false
    t.heads[webhook] = known
  end
  return known
end

local function count(t, destination, state, by)
  local group = state < SENT and 'pending:' or state .. ':'
  local field = group .. destination
  t.counted[field] = (t.counted[field] or 0) + by
end

-- Lanes. The queue of a destination holds one delivery of each: the front, which is the one on its way or else the one
-- whose event happened first. The others stand in the lane's own sorted set. Who waits for an operator stands in none.

local function lane_key(t, destination, lane)
  return t.tag .. ':lane:' .. destination .. ':' .. lane
end

local function delivery_of(t, member)
  local webhook, number = string.match(member, '^(%d+)%.(%d+)$')
  local stored = call('HGET', t.webhook .. webhook, 'd' .. number)
  return stored and unpacked(stored)
end

-- Return whose event happened first; of one moment, who came first.
local function first_of(lane)
  local first = call('ZRANGE', lane, 0, 0, 'WITHSCORES')
  local best, best_webhook, best_number
  for _, member in ipairs(first[1] and call('ZRANGE', lane, first[2], first[2], 'BYSCORE') or {}) do
    local webhook, number = string.match(member, '^(%d+)%.(%d+)$')
    webhook, number = tonumber(webhook), tonumber(number)
    if not best or webhook < best_webhook or (webhook == best_webhook and number < best_number) then
      best, best_webhook, best_number = member, webhook, number
    end
  end
  return best
end

local function set_front(t, destination, lane, member, due_at)
  call('HSET', t.tag .. ':fronts', destination .. ':' .. lane, member)
  call('ZADD', t.tag .. ':due:' .. destination, due_at, member)
end

local function line_up(t, destination, lane)
  local key, queue = lane_key(t, destination, lane), t.tag .. ':due:' .. destination
  local first, front = first_of(key), call('HGET', t.tag .. ':fronts', destination .. ':' .. lane)
  if front and front ~= first and call('ZSCORE', key, front) then
    if delivery_of(t, front)[D.state] == LEASED then
      return -- on its way
    end
    call('ZREM', queue, front)
  end
  if first then
    set_front(t, destination, lane, first, delivery_of(t, first)[D.due_at])
  else
    call('HDEL', t.tag .. ':fronts', destination .. ':' .. lane)
  end
end

local function touch_lane(t, it)
  t.lanes[it[D.destination] .. ':' .. it[D.lane]] = { it[D.destination], it[D.lane] }
end

-- Let a pending delivery be found when it is due.
local function enqueue(t, webhook, number, it)
  local queue, member = t.tag .. ':due:' .. it[D.destination], webhook .. '.' .. number
  if not it[D.lane] then
    call('ZADD', queue, it[D.due_at], member)
    return
  end
  local lane = lane_key(t, it[D.destination], it[D.lane])
  if it[D.due_at] < NEVER then
    call('ZADD', lane, it[D.at], member)
  else
    call('ZREM', lane, member)
    call('ZADD', queue, it[D.due_at], member)
  end
  touch_lane(t, it)
end

local function dequeue(t, webhook, number, it)
  local member = webhook .. '.' .. number
  call('ZREM', t.tag .. ':due:' .. it[D.destination], member)
  if it[D.lane] then
    call('ZREM', lane_key(t, it[D.destination], it[D.lane]), member)
    touch_lane(t, it)
  end
end

-- What waits for an operator (parked, dead) is listed by where it is; what is dead also by destination and reason.

local NUMBERS = 4096

local function where(webhook, number)
  return text(tonumber(webhook) * NUMBERS + math.min(tonumber(number), NUMBERS - 1))
end

local function group_of(it)
  return it[D.destination] .. '\n' .. it[D.reason]
end

local function track(t, webhook, number, it)
  local member = webhook .. '.' .. number
  if it[D.state] == PARKED then
    call('ZADD', t.tag .. ':parked', where(webhook, number), member)
  elseif it[D.state] == DEAD then
    call('ZADD', t.tag .. ':dead', where(webhook, number), member)
    call('ZADD', t.tag .. ':dead:' .. group_of(it), where(webhook, number), member)
    call('SADD', t.tag .. ':deaths', group_of(it))
  end
end

local function untrack(t, webhook, number, it)
  local member = webhook .. '.' .. number
  if it[D.state] == PARKED then
    call('ZREM', t.tag .. ':parked', member)
  elseif it[D.state] == DEAD then
    call('ZREM', t.tag .. ':dead', member)
    call('ZREM', t.tag .. ':dead:' .. group_of(it), member)
    if call('EXISTS', t.tag .. ':dead:' .. group_of(it)) == 0 then
      call('SREM', t.tag .. ':deaths', group_of(it))
    end
  end
end

local function set_field(t, name, value)
  local fields = t.fields
  fields[#fields + 1] = name
  fields[#fields + 1] = value
end

-- Write what a webhook is made of in one go, and then what leads to it: whatever is in a queue can be read.
local function flush(t, webhook)
  if #t.fields > 0 then
    call('HSET', t.webhook .. webhook, unpack(t.fields))
    t.fields = {}
  end
  for _, each in ipairs(t.queued) do
    enqueue(t, webhook, each[1], each[2])
  end
  t.queued = {}
end

local function finish(t)
  for webhook in pairs(t.dirty) do
    call('HSET', t.webhook .. webhook, 'n', pack(t.heads[webhook]))
  end
  for _, lane in pairs(t.lanes) do
    line_up(t, lane[1], lane[2])
  end
  for field, by in pairs(t.counted) do
    if by ~= 0 and call('HINCRBY', t.tag .. ':counts', field, by) == 0 then
      call('HDEL', t.tag .. ':counts', field)
    end
  end
  local due = {}
  for destination in pairs(t.due) do
    due[#due + 1] = destination
  end
  if #due > 0 then
    redis.pcall('PUBLISH', t.tag .. ':due', table.concat(due, '\n')) -- who may not publish polls
  end
  return due
end

-- Return the deliveries of a webhook by number (from 0); false where a replay took one away.
local function deliveries(t, webhook)
  local it = head(t, webhook)
  local fields, found = {}, {}
  for number = 0, (it and it[N.deliveries] or 0) - 1 do
    fields[#fields + 1] = 'd' .. number
  end
  if #fields > 0 then
    for index, packed in ipairs(call('HMGET', t.webhook .. webhook, unpack(fields))) do
      found[index - 1] = packed and unpacked(packed)
    end
  end
  return found, #fields - 1
end

-- Write a delivery; `was` is the state that it leaves, nil for a new one.
local function put(t, webhook, number, it, was)
  call('HSET', t.webhook .. webhook, 'd' .. number, pack(it))
  if it[D.state] < SENT then
    enqueue(t, webhook, number, it)
  elseif was and was < SENT then
    dequeue(t, webhook, number, it)
  end
  if was ~= it[D.state] then
    track(t, webhook, number, it)
  end
  if was then
    count(t, it[D.destination], was, -1)
  end
  count(t, it[D.destination], it[D.state], 1)
end

local function remove(t, webhook, number, it)
  local fields = { 'd' .. number, 'r' .. number }
  for try = 1, it[D.attempts] do
    fields[#fields + 1] = 'a' .. number .. '.' .. try
  end
  for from = 1, #fields, 1000 do
    call('HDEL', t.webhook .. webhook, unpack(fields, from, math.min(from + 999, #fields)))
  end
  if it[D.state] < SENT then
    dequeue(t, webhook, number, it)
  end
  untrack(t, webhook, number, it)
  count(t, it[D.destination], it[D.state], -1)
end

-- payments

local function same_event(one, other)
  return one[C.webhook] == other[C.webhook] and one[C.event_id] == other[C.event_id]
end

local function of_claim(t, claim)
  local it = head(t, claim[C.webhook])
  local all, last = deliveries(t, claim[C.webhook])
  local found = {}
  for number = 0, last do
    local each = all[number]
    if each and it[EVENTS_FROM + each[D.event]] == claim[C.event_id] then
      found[number] = each
    end
  end
  return found
end

-- Whether a claim steps back for a surer one: its hold lasts, and nothing of it has gone out.
local function yields(t, claim, now)
  if claim[C.held_until] <= now then
    return false
  end
  for _, each in pairs(of_claim(t, claim)) do
    if each[D.state] ~= WAITING and each[D.state] ~= SKIPPED then
      return false
    end
  end
  return true
end

local function supersede(t, claim)
  for number, each in pairs(of_claim(t, claim)) do
    if each[D.state] == WAITING then
      each[D.state], each[D.reason], each[D.due_at] = SKIPPED, 'superseded', 0
      put(t, claim[C.webhook], number, each, WAITING)
    end
  end
end

local function claim_of(payment, name)
  for index, each in ipairs(payment[CLAIMS_OF]) do
    if each[C.name] == name then
      return each, index
    end
  end
end

local function set_claim(payment, claim)
  local _, index = claim_of(payment, claim[C.name])
  payment[CLAIMS_OF][index or #payment[CLAIMS_OF] + 1] = claim
end

-- Whether `one` goes before `other`, of two claims under one name of what turns out to be one payment.
local function stands(one, other, one_yields, other_yields)
  if one_yields ~= other_yields then
    return other_yields
  end
  for _, field in ipairs({ C.hold, C.webhook, C.event }) do
    local a, b = tonumber(one[field]), tonumber(other[field])
    if a ~= b then
      return a < b
    end
  end
  return true
end

local function merge(t, payment, other, now)
  for _, key in ipairs(other[KEYS_OF]) do
    payment[KEYS_OF][#payment[KEYS_OF] + 1] = key
  end
  for _, claim in ipairs(other[CLAIMS_OF]) do
    local rival = claim_of(payment, claim[C.name])
    if rival then
      local claim_yields, rival_yields = yields(t, claim, now), yields(t, rival, now)
      local loser, loser_yields = rival, rival_yields
      if not stands(claim, rival, claim_yields, rival_yields) then
        claim, loser, loser_yields = rival, claim, claim_yields
      end
      if loser_yields and not same_event(claim, loser) then
        supersede(t, loser)
      end
    end
    set_claim(payment, claim)
  end
end

-- Make the keys, and all that were ever claimed with any of them, one payment. Return its number and itself.
local function unite(t, keys, fresh, now)
  local numbers, found, known = {}, {}, {}
  for index, number in ipairs(call('HMGET', t.tag .. ':keys', unpack(keys))) do
    if number then
      known[keys[index]] = true
      if not found[number] then
        found[number] = true
        numbers[#numbers + 1] = number
      end
    end
  end
  local payment, record = fresh, { {}, {} }
  if #numbers > 0 then
    table.sort(numbers, function(a, b) return tonumber(a) > tonumber(b) end)
    payment = numbers[1] -- the youngest, as retention counts from it
    record = unpacked(call('HGET', t.tag .. ':payments', payment))
    for index = 2, #numbers do
      local other = unpacked(call('HGET', t.tag .. ':payments', numbers[index]))
      for _, key in ipairs(other[KEYS_OF]) do
        call('HSET', t.tag .. ':keys', key, payment)
      end
      merge(t, record, other, now)
      call('HDEL', t.tag .. ':payments', numbers[index])
    end
  end
  for _, key in ipairs(keys) do
    if not known[key] then
      known[key] = true
      call('HSET', t.tag .. ':keys', key, payment)
      record[KEYS_OF][#record[KEYS_OF] + 1] = key
    end
  end
  return payment, record
end

local function may_claim(t, payment, owner, first_event, now)
  local standing = claim_of(payment, owner[C.name])
  if not standing or (same_event(standing, owner) and standing[C.event] < first_event) then
    return true -- nobody's, or its own, as it is being replayed
  end
  if owner[C.hold] >= standing[C.hold] or not yields(t, standing, now) then
    return false
  end
  supersede(t, standing)
  return true
end

-- Make the keys one payment and, for an event, claim it. Return whether the event may go out.
local function claim(t, keys, owner, fresh, first_event, now)
  local number, payment = unite(t, keys, fresh, now)
  local free = not owner or number == fresh or may_claim(t, payment, owner, first_event, now)
  if owner and free then
    set_claim(payment, owner)
  end
  call('HSET', t.tag .. ':payments', number, pack(payment))
  return free
end

local function fresh_payment(webhook, it)
  local number = text(tonumber(webhook) * 1000 + it[N.payments])
  it[N.payments] = it[N.payments] + 1
  return number
end

-- accept and replay

local function read_event(read)
  local event = { id = read.text(), sealed = read.text(), at = read.number(), state_of = read.text() }
  event.keys, event.deliveries = read.texts(), {}
  event.name, event.hold, event.order = read.text(), read.number(), read.text()
  for index = 1, read.number() do
    event.deliveries[index] =
      { destination = read.text(), skip = read.text(), wait_until = read.number(), late = read.number(), lane = read.text() }
  end
  return event
end

-- Read all of a webhook before anything is written: what is malformed leaves nothing.
local function read_acceptance(read)
  local new = { key = read.text(), source = read.text(), account = read.text(), type = read.text(), id = read.text() }
  new.occurred_at, new.received_at, new.test, new.mapping = read.number(), read.number(), read.number(), read.text()
  new.notes, new.kept, new.sealed = read.text(), read.number(), read.text()
  new.unlinked, new.teaches, new.subjects = read.number(), read.number(), read.texts()
  new.bare, new.events = {}, {}
  for index = 1, read.number() do
    new.bare[index] = read.texts()
  end
  for index = 1, read.number() do
    new.events[index] = read_event(read)
  end
  return new
end

local function name_subjects(t, webhook, new)
  if #new.subjects == 0 then
    return
  end
  set_field(t, 's', pack({ new.teaches, new.subjects }))
  for _, key in ipairs(new.subjects) do
    call('ZADD', t.tag .. ':n:' .. key, webhook, webhook)
    if new.unlinked == 1 then
      call('ZADD', t.tag .. ':u:' .. key, webhook, webhook)
    end
  end
end

local function subjects_of(t, webhook)
  local stored = call('HGET', t.webhook .. webhook, 's')
  if not stored then
    return 0, {}
  end
  return unpack(unpacked(stored))
end

local function unname(t, webhook)
  local _, keys = subjects_of(t, webhook)
  for _, key in ipairs(keys) do
    call('ZREM', t.tag .. ':n:' .. key, webhook)
    call('ZREM', t.tag .. ':u:' .. key, webhook)
  end
  call('HDEL', t.webhook .. webhook, 's')
end

-- Note that the state of an object was told as of `at`. Return whether a newer one was told before.
local function is_stale(t, object, at)
  local told = call('ZSCORE', t.tag .. ':told', object)
  if told and tonumber(told) > at then
    return true
  end
  call('ZADD', t.tag .. ':told', at, object)
  return false
end

local function new_delivery(number, event, delivery, held_until, late, skip, now)
  local it = { number, delivery.destination, SKIPPED, '', 0, 0, 0, 0, 0, late }
  if delivery.lane ~= '' then
    it[D.at], it[D.lane] = event.at, delivery.lane
  end
  local due_at = math.max(held_until, delivery.wait_until, now)
  if delivery.skip ~= '' or skip then
    it[D.reason] = delivery.skip ~= '' and delivery.skip or skip
  elseif due_at <= now then
    it[D.state], it[D.due_at] = DUE, now
  else
    it[D.state], it[D.due_at], it[D.held_until] = WAITING, due_at, held_until
    it[D.reason] = delivery.wait_until > held_until and 'link' or 'hold'
  end
  return it
end

-- Store events and deliveries of a webhook. Return whether any of them waits for a link.
local function store_events(t, webhook, new, now)
  local it = t.heads[webhook]
  local first_event, waits = #it - EVENTS_FROM + 1, false
  for _, keys in ipairs(new.bare) do
    claim(t, keys, nil, fresh_payment(webhook, it), first_event, now)
  end
  for index, event in ipairs(new.events) do
    if index > 1 then
      flush(t, webhook) -- its claim may meet one of the events before it
    end
    local number = #it - EVENTS_FROM + 1
    it[#it + 1] = event.id
    local held_until = event.hold > 0 and now + event.hold or 0
    local owner = { event.name, event.id, webhook, number, held_until, event.hold, event.order }
    local fresh = fresh_payment(webhook, it)
    local taken = #event.keys > 0 and not claim(t, event.keys, owner, fresh, first_event, now)
    local stale = event.state_of ~= '' and is_stale(t, event.state_of, event.at)
    local skip = taken and 'duplicate_payment' or stale and 'stale' or nil
    set_field(t, 'e' .. number, event.sealed)
    for _, delivery in ipairs(event.deliveries) do
      local late = skip and NOT_LATE or delivery.late
      local made = new_delivery(number, event, delivery, held_until, late, skip, now)
      local destination, state, place = made[D.destination], made[D.state], it[N.deliveries]
      it[N.deliveries] = place + 1
      set_field(t, 'd' .. place, pack(made))
      count(t, destination, state, 1)
      if state < SENT then
        t.queued[#t.queued + 1] = { place, made }
      end
      if state == DUE then
        t.due[destination] = true
      end
      waits = waits or made[D.reason] == 'link'
    end
  end
  set_field(t, 'n', pack(it))
  flush(t, webhook)
  return waits and 1 or 0
end

local function partition(tag)
  return tonumber(string.match(tag, '%.(%d+)}$'))
end

local function ask(t, request)
  local number = text(call('HINCRBY', t.tag .. ':meta', 'requests', 1) * PARTITIONS + partition(t.tag))
  call('HSET', t.tag .. ':asked', number, pack(request))
  return tonumber(number)
end

-- Webhooks are listed by source, by type, and by what their sender calls them: mostly each its own way, so that the
-- first of a name is in a hash, and a set has the others.

local function enlist(t, webhook, came)
  call('ZADD', t.tag .. ':source:' .. came[W.source], webhook, webhook)
  call('ZADD', t.tag .. ':type:' .. came[W.type], webhook, webhook)
  if call('HSETNX', t.tag .. ':ids', came[W.id], webhook) == 0 then
    call('ZADD', t.tag .. ':id:' .. came[W.id], webhook, webhook)
  end
end

local function delist(t, webhook, came)
  call('ZREM', t.tag .. ':source:' .. came[W.source], webhook)
  call('ZREM', t.tag .. ':type:' .. came[W.type], webhook)
  local others = t.tag .. ':id:' .. came[W.id]
  if call('HGET', t.tag .. ':ids', came[W.id]) ~= webhook then
    call('ZREM', others, webhook)
    return
  end
  local following = call('ZPOPMIN', others)
  if following[1] then
    call('HSET', t.tag .. ':ids', came[W.id], following[1])
  else
    call('HDEL', t.tag .. ':ids', came[W.id])
  end
end

local function add_webhook(t, fingerprint, new)
  local sequence = call('HINCRBY', t.tag .. ':meta', 'last', 1)
  if sequence == 1 then
    call('HSETNX', t.tag .. ':meta', 'fingerprint', fingerprint) -- somebody emptied the server meanwhile
  end
  local webhook = text(sequence * PARTITIONS + partition(t.tag))
  local came = { new.source, new.account, new.type, new.id, new.occurred_at, new.received_at, new.test, new.key }
  set_field(t, 'w', pack(came))
  enlist(t, webhook, came)
  if new.kept == 1 then
    set_field(t, 'b', new.sealed)
  end
  name_subjects(t, webhook, new)
  t.heads[webhook] = { new.mapping, new.notes, 0, 0 }
  return webhook
end

-- Return the webhook's number, whether it was known, whether it waits for a link, its first new delivery, and who has work.
local function accept(keys, args)
  local t = begin(keys[1])
  local read = reader(args)
  local fingerprint, new = read.text(), read_acceptance(read)
  local request = read.rest()
  local known = call('HGET', t.tag .. ':seen', new.key)
  if known then
    return { tonumber(known), 1, 0, 0, {} }
  end
  local webhook = add_webhook(t, fingerprint, new)
  if #request > 0 then
    ask(t, request)
  end
  local waits = store_events(t, webhook, new, new.received_at)
  -- Last, so that whatever cuts this short leaves nothing that would keep the sender from sending again.
  call('HSET', t.tag .. ':seen', new.key, webhook)
  return { tonumber(webhook), 0, waits, 0, finish(t) }
end

local STANDING = { [WAITING] = true, [DUE] = true, [LEASED] = true, [SENT] = true }

-- Put new events beside the old ones, and let each new delivery take the place of one that did not get through.
local function replay(keys, args)
  local t = begin(keys[1])
  local read = reader(args)
  local webhook, now, new = read.text(), read.number(), read_acceptance(read)
  if call('HEXISTS', t.webhook .. webhook, 'b') == 0 then
    return { 0, 0, 0, 0, {} }
  end
  local it = head(t, webhook)
  local existing, last = deliveries(t, webhook)
  local settled, renewed, events = {}, {}, {}
  local function place(id, destination)
    return id .. destination -- ids are of one length
  end
  for number = 0, last do
    local each = existing[number]
    if each and STANDING[each[D.state]] then
      settled[place(it[EVENTS_FROM + each[D.event]], each[D.destination])] = true
    end
  end
  for _, event in ipairs(new.events) do
    local kept = {}
    for _, each in ipairs(event.deliveries) do
      if not settled[place(event.id, each.destination)] then
        kept[#kept + 1] = each
        renewed[place(event.id, each.destination)] = true
      end
    end
    if #kept > 0 then
      event.deliveries = kept
      events[#events + 1] = event
    end
  end
  for number = 0, last do
    local each = existing[number]
    if each and not STANDING[each[D.state]] then
      if renewed[place(it[EVENTS_FROM + each[D.event]], each[D.destination])] then
        remove(t, webhook, number, each)
      end
    end
  end
  it[N.mapping], it[N.notes] = new.mapping, new.notes
  unname(t, webhook)
  name_subjects(t, webhook, new)
  new.events = events
  local waits = store_events(t, webhook, new, now)
  return { tonumber(webhook), 0, waits, last + 1, finish(t) }
end

-- Put a webhook's request in its own place, unless it was taken away meanwhile.
local function keep(keys, args)
  local webhook = keys[1] .. ':w:' .. args[1]
  if call('HEXISTS', webhook, 'b') == 0 then
    return 0
  end
  call('HSET', webhook, 'b', args[2])
  return 1
end

-- A link is known: what a webhook was accepted with, from this delivery on, does not wait for it.
local function unwait(keys, args)
  local t = begin(keys[1])
  local webhook, from, now = args[1], tonumber(args[2]), tonumber(args[3])
  local all, last = deliveries(t, webhook)
  for number = from, last do
    local each = all[number]
    if each and each[D.state] == WAITING and each[D.reason] == 'link' then
      if each[D.held_until] > now then
        each[D.reason], each[D.due_at] = 'hold', each[D.held_until]
      else
        each[D.state], each[D.reason], each[D.due_at], each[D.held_until] = DUE, '', now, 0
        t.due[each[D.destination]] = true
      end
      put(t, webhook, number, each, WAITING)
    end
  end
  return finish(t)
end

-- delivery

-- The lease of what is on its way in a lane has run out: return who goes now, or nil when that one is not due.
local function next_in_lane(t, queue, member, it, now)
  local first = first_of(lane_key(t, it[D.destination], it[D.lane]))
  if first == member then
    return member, it
  end
  local other = delivery_of(t, first)
  call('ZREM', queue, member)
  set_front(t, it[D.destination], it[D.lane], first, other[D.due_at])
  if other[D.due_at] <= now then
    return first, other
  end
end

-- Take due deliveries. Return when the next falls due (false: never), then eight values for each.
local function lease(keys, args)
  local t = begin(keys[1])
  local destination, limit, now, til = args[1], tonumber(args[2]), tonumber(args[3]), args[4]
  local queue = t.tag .. ':due:' .. destination
  local found, taken, members = {}, 0, {}
  repeat
    local left = math.min(limit - taken, 500)
    members = left > 0 and call('ZRANGE', queue, '-inf', args[3], 'BYSCORE', 'LIMIT', 0, left) or {}
    local leased = {}
    for _, member in ipairs(members) do
      local it = delivery_of(t, member)
      if not it then
        call('ZREM', queue, member) -- an evicting policy took its webhook
        member = nil
      elseif it[D.lane] and it[D.state] == LEASED then
        member, it = next_in_lane(t, queue, member, it, now)
      end
      if member then
        local webhook, number = string.match(member, '^(%d+)%.(%d+)$')
        local key = t.webhook .. webhook
        local stored = call('HMGET', key, 'e' .. it[D.event], 'r' .. number)
        untrack(t, webhook, number, it)
        it[D.state], it[D.reason], it[D.due_at], it[D.fence] = LEASED, '', tonumber(til), it[D.fence] + 1
        call('HSET', key, 'd' .. number, pack(it))
        leased[#leased + 1] = til
        leased[#leased + 1] = member
        local place = #found
        found[place + 1], found[place + 2], found[place + 3] = tonumber(webhook), tonumber(number), it[D.fence]
        found[place + 4], found[place + 5] = it[D.attempts], it[D.first_try_at]
        found[place + 6], found[place + 7] = stored[1], stored[2]
        found[place + 8] = it[D.late] == LATE and 1 or 0
        taken = taken + 1
      end
    end
    if #leased > 0 then
      call('ZADD', queue, unpack(leased))
    end
  until #members == 0
  local first = call('ZRANGE', queue, 0, 0, 'WITHSCORES')
  return { first[2] or false, found }
end

-- Record what became of leased deliveries. Return how many were still held.
--
-- The event's last bytes tell that a number still means what it meant: after a failover that lost the newest writes,
-- it may be given to another webhook.
local function settle(keys, args)
  local t = begin(keys[1])
  local read = reader(args)
  local held = 0
  for _ = 1, read.number() do
    local webhook, number, fence, tail = read.text(), read.text(), read.number(), read.text()
    local state, reason, due_at = read.number(), read.text(), read.number()
    local attempts, first_try_at = read.number(), read.number()
    local again, rendered, tried, attempt = read.number(), read.text(), read.number(), read.text()
    local key = t.webhook .. webhook
    local stored = call('HGET', key, 'd' .. number)
    local it = stored and unpacked(stored)
    if it and it[D.state] == LEASED and it[D.fence] == fence then
      local event = call('HGET', key, 'e' .. it[D.event])
      if string.sub(event, -#tail) == tail then
        held = held + 1
        it[D.state], it[D.reason], it[D.due_at] = state, reason, due_at
        it[D.attempts], it[D.first_try_at] = attempts, first_try_at
        put(t, webhook, number, it, LEASED)
        if tried == 1 then
          call('HSET', key, 'a' .. number .. '.' .. attempts, attempt)
        end
        if again == 1 then
          call('HSET', key, 'r' .. number, rendered)
        else
          call('HDEL', key, 'r' .. number)
        end
      end
    end
  end
  finish(t)
  return held
end

-- links: of each part the length of its name (1 byte), its name, the length of its value (4 bytes), its value

-- A value is two times (8 bytes each), one more than the length of the teacher's key (0: nobody taught it), that key,
-- and what is sealed.
local function read_link(value)
  local linked_at, expires_at, taught = struct.unpack('>I8I8B', value)
  return linked_at, expires_at, taught > 0 and string.sub(value, 18, 16 + taught) or nil
end

local function read_parts(stored)
  local parts, order, at = {}, {}, 1
  while stored and at <= #stored do
    local named = at + 1 + string.byte(stored, at)
    local size = struct.unpack('>I4', stored, named)
    local part = string.sub(stored, at + 1, named - 1)
    parts[part] = string.sub(stored, named + 4, named + 3 + size)
    order[#order + 1] = part
    at = named + 4 + size
  end
  return parts, order
end

local function write_parts(key, parts, order, now, kept_for)
  local packed, last = {}, 0
  for _, part in ipairs(order) do
    local value = parts[part]
    local _, expires_at = read_link(value)
    last = math.max(last, expires_at)
    packed[#packed + 1] = string.char(#part) .. part .. struct.pack('>I4', #value) .. value
  end
  call('SET', key, table.concat(packed), 'PX', text(math.max(1, last + kept_for - now)))
end

local function replaces(value, known, now)
  local linked_at, _, taught_by = read_link(value)
  local known_at, known_ends, known_by = read_link(known)
  return known_ends <= now
    or (known_by and not taught_by)
    or (linked_at >= known_at and not known_by and not taught_by)
    or (linked_at >= known_at and known_by and known_by == taught_by)
end

-- Store parts of one subject's link, where they go before what is known.
local function link(keys, args)
  local read = reader(args)
  local now, kept_for = read.number(), read.number()
  local parts, order = read_parts(call('GET', keys[1]))
  for _ = 1, read.number() do
    local part, value = read.text(), read.text()
    if not parts[part] then
      parts[part] = value
      order[#order + 1] = part
    elseif replaces(value, parts[part], now) then
      parts[part] = value
    end
  end
  write_parts(keys[1], parts, order, now, kept_for)
  return 1
end

-- Link a subject as another is, if it is not linked. Return whether it was news.
local function teach(keys, args)
  local read = reader(args)
  local now, kept_for = read.number(), read.number()
  local parts, order = read_parts(call('GET', keys[1]))
  for _, value in pairs(parts) do
    local _, expires_at = read_link(value)
    if expires_at > now then
      return 0
    end
  end
  for _ = 1, read.number() do
    local part, value = read.text(), read.text()
    if not parts[part] then
      order[#order + 1] = part
    end
    parts[part] = value
  end
  if #order > 0 then
    write_parts(keys[1], parts, order, now, kept_for)
  end
  return 1
end

-- Erase a link. Return how many parts it had that had not ended before `ended`.
local function unlink(keys, args)
  local parts = read_parts(call('GET', keys[1]))
  local number = 0
  for _, value in pairs(parts) do
    local _, expires_at = read_link(value)
    if expires_at > tonumber(args[1]) then
      number = number + 1
    end
  end
  call('DEL', keys[1])
  return number
end

-- Let a webhook's deliveries know that its visitor is known.
local function release(t, webhook, now)
  local it = head(t, webhook)
  local all, last = deliveries(t, webhook)
  for number = 0, last do
    local each = all[number]
    if each then
      local was, reason, wanted = each[D.state], each[D.reason], each[D.late] == LATE_WANTED
      local gone = was == LEASED or was == PARKED or was == SENT or was == DEAD
        or (was == DUE and each[D.attempts] > 0)
      if wanted and (gone or (was == SKIPPED and reason == 'not_routed')) then
        local made = { each[D.event], each[D.destination], DUE, '', now, 0, 0, 0, 0, LATE, each[D.at], each[D.lane] }
        put(t, webhook, it[N.deliveries], made, nil)
        it[N.deliveries] = it[N.deliveries] + 1
        t.dirty[webhook] = true
        t.due[each[D.destination]] = true
      end
      if wanted then
        each[D.late] = NOT_LATE
      end
      if was == WAITING or (was == SKIPPED and reason == 'no_person') then
        local held = each[D.held_until] > now
        each[D.state], each[D.reason] = held and WAITING or DUE, held and 'hold' or ''
        each[D.due_at] = math.max(each[D.held_until], now)
        if not held then
          t.due[each[D.destination]] = true
        end
        put(t, webhook, number, each, was)
      elseif wanted then
        put(t, webhook, number, each, was)
      end
    end
  end
end

-- Tell the newest webhooks that wait for a link of this subject. Return who has work now, and whom else they name.
local function tell(keys, args)
  local t = begin(keys[1])
  local now, limit, key = tonumber(args[1]), tonumber(args[2]), args[3]
  local others = {}
  for _, webhook in ipairs(call('ZREVRANGE', t.tag .. ':u:' .. key, 0, limit - 1)) do
    local teaches, subjects = subjects_of(t, webhook)
    for _, each in ipairs(subjects) do
      call('ZREM', t.tag .. ':u:' .. each, webhook)
    end
    release(t, webhook, now)
    if teaches == 1 then
      for _, each in ipairs(subjects) do
        others[#others + 1] = each
      end
    end
  end
  return { finish(t), others }
end

-- what people may ask about their data

local function fulfil(keys, args)
  local number, done_at, outcome = args[1], args[2], args[3]
  local stored = call('HGET', keys[1] .. ':asked', number)
  if stored then
    local request = unpacked(stored)
    call('HSET', keys[1] .. ':answered', number, pack({ request[1], request[2], request[3], request[4], done_at, outcome }))
    call('HDEL', keys[1] .. ':asked', number)
  end
  return 1
end

local function asked(keys)
  local found = {}
  for index, value in ipairs(call('HGETALL', keys[1] .. ':asked')) do
    found[index] = index % 2 == 1 and tonumber(value) or unpacked(value)
  end
  return found
end

local function persons_of(t, webhooks)
  local persons, seen = {}, {}
  for _, webhook in ipairs(webhooks) do
    local _, subjects = subjects_of(t, webhook)
    for _, key in ipairs(subjects) do
      if not seen[key] then
        seen[key] = true
        persons[#persons + 1] = key
      end
    end
  end
  return persons
end

-- Return the newest webhooks before a number that name one of these subjects, and all whom they name.
local function naming(keys, args)
  local t = begin(keys[1])
  local read = reader(args)
  local before, limit = read.text(), read.number()
  local found, seen = {}, {}
  for _, key in ipairs(read.rest()) do
    local numbers = call('ZRANGE', t.tag .. ':n:' .. key, before, '-inf', 'BYSCORE', 'REV', 'LIMIT', 0, limit)
    for _, webhook in ipairs(numbers) do
      if not seen[webhook] then
        seen[webhook] = true
        found[#found + 1] = webhook
      end
    end
  end
  table.sort(found, function(a, b) return tonumber(a) > tonumber(b) end)
  for index = limit + 1, #found do
    found[index] = nil
  end
  return { found, persons_of(t, found) }
end

-- Return a step of an account's webhooks that have bodies, all whom they name, and where to go on (0 at the end).
local function of_account(keys, args)
  local t = begin(keys[1])
  local source, account, from, step = args[1], args[2], tonumber(args[3]), tonumber(args[4])
  local meta = call('HMGET', t.tag .. ':meta', 'first', 'last')
  local sequence, last = math.max(from, tonumber(meta[1] or 1)), tonumber(meta[2] or 0)
  local til = math.min(last, sequence + step - 1)
  local found = {}
  for each = sequence, til do
    local webhook = text(each * PARTITIONS + partition(t.tag))
    local came = call('HGET', t.webhook .. webhook, 'w')
    if came and call('HEXISTS', t.webhook .. webhook, 'b') == 1 then
      came = unpacked(came)
      if came[W.source] == source and came[W.account] == account then
        found[#found + 1] = webhook
      end
    end
  end
  return { til < last and til + 1 or 0, found, persons_of(t, found) }
end

-- Erase what was made of a webhook, and whom it names. Return whether it had a body, and what was pending.
local function erase(t, webhook)
  local key, it, pending = t.webhook .. webhook, head(t, webhook), 0
  local had = call('HEXISTS', key, 'b')
  local all, last = deliveries(t, webhook)
  for number = 0, last do
    local each = all[number]
    if each then
      count(t, each[D.destination], each[D.state], -1)
      untrack(t, webhook, number, each)
      if each[D.state] < SENT then
        pending = pending + 1
        dequeue(t, webhook, number, each)
      end
    end
  end
  unname(t, webhook)
  local came = call('HGET', key, 'w')
  -- Whatever else there is goes with the key, and what stays takes less room in a new one.
  call('DEL', key)
  local left = { it[N.mapping], '', 0, it[N.payments] }
  t.heads[webhook] = left
  call('HSET', key, 'w', came, 'n', pack(left))
  return had, pending
end

local function payments_of(t, webhook)
  local found = {}
  for number = 0, head(t, webhook)[N.payments] - 1 do
    local payment = text(tonumber(webhook) * 1000 + number)
    local record = call('HGET', t.tag .. ':payments', payment)
    if record then
      found[payment] = unpacked(record)
    end
  end
  return found
end

-- Erase webhooks for good, with what their payments are called. Return how many had bodies, and what was pending.
local function forget(keys, args)
  local t = begin(keys[1])
  local bodies, pending = 0, 0
  for _, webhook in ipairs(args) do
    if head(t, webhook) then
      for number, payment in pairs(payments_of(t, webhook)) do
        for _, each in ipairs(payment[CLAIMS_OF]) do
          each[C.order] = ''
        end
        call('HSET', t.tag .. ':payments', number, pack(payment))
      end
      local had, unsent = erase(t, webhook)
      bodies, pending = bodies + had, pending + unsent
    end
  end
  finish(t)
  return { bodies, pending }
end

-- retention

-- Purge one step: bodies that came before `bodies_before`, stubs that came before `stubs_before`, and which states were
-- told as of before the last argument.
-- Return how many it was, and how many had bodies.
local function purge(keys, args)
  local t = begin(keys[1])
  local bodies_before, stubs_before, step = tonumber(args[1]), tonumber(args[2]), tonumber(args[3])
  local meta = call('HMGET', t.tag .. ':meta', 'first', 'last', 'purged')
  local first, last, purged = tonumber(meta[1] or 1), tonumber(meta[2] or 0), tonumber(meta[3] or 0)
  local function came(sequence)
    local webhook = text(sequence * PARTITIONS + partition(t.tag))
    local stored = call('HGET', t.webhook .. webhook, 'w')
    return webhook, stored and unpacked(stored)
  end
  local looked_at, bodies, sequence = 0, 0, math.max(purged + 1, first)
  while sequence <= last and looked_at < step do
    local webhook, it = came(sequence)
    if it then
      if it[W.received_at] >= bodies_before then
        break -- the mark must not pass it
      end
      bodies = bodies + erase(t, webhook)
      looked_at = looked_at + 1
    end
    purged = sequence
    sequence = sequence + 1
  end
  local told = call('ZRANGE', t.tag .. ':told', '-inf', '(' .. args[4], 'BYSCORE', 'LIMIT', 0, step)
  if #told > 0 then
    call('ZREM', t.tag .. ':told', unpack(told))
    looked_at = looked_at + #told
  end
  local gone, unbroken = 0, true
  for each = first, math.min(last, first + step - 1) do
    local webhook, it = came(each)
    if it and it[W.received_at] < stubs_before and call('HEXISTS', t.webhook .. webhook, 'b') == 0 then
      for number, payment in pairs(payments_of(t, webhook)) do
        for _, key in ipairs(payment[KEYS_OF]) do
          call('HDEL', t.tag .. ':keys', key)
        end
        call('HDEL', t.tag .. ':payments', number)
      end
      call('HDEL', t.tag .. ':seen', it[W.key])
      delist(t, webhook, it)
      call('DEL', t.webhook .. webhook)
      t.dirty[webhook] = nil
      gone = gone + 1
      it = nil
    end
    unbroken = unbroken and not it
    if unbroken then
      first = each + 1
    end
  end
  call('HSET', t.tag .. ':meta', 'first', text(first), 'purged', text(purged))
  finish(t)
  return { looked_at + gone, bodies }
end

-- what the console and the command line look at

local function row(t, webhook, with_body)
  local stored = call('HMGET', t.webhook .. webhook, 'w', 'n')
  if not stored[1] then
    return false
  end
  local came, it = unpacked(stored[1]), unpacked(stored[2])
  local body = with_body and call('HGET', t.webhook .. webhook, 'b')
  return {
    tonumber(webhook), came[W.source], came[W.account], came[W.type], came[W.id], came[W.occurred_at],
    came[W.received_at], came[W.test], it[N.mapping], it[N.notes], body or false,
  }
end

local function read_webhook(keys, args)
  return row(begin(keys[1]), args[1], true)
end

-- Look at up to `step` webhooks before a sequence number (0: from the newest on). Return where to go on (0 at the
-- end), and up to `limit` rows, newest first.
local function list(keys, args)
  local t = begin(keys[1])
  local before, limit, step = tonumber(args[1]), tonumber(args[2]), tonumber(args[3])
  local meta = call('HMGET', t.tag .. ':meta', 'first', 'last')
  local first, last = tonumber(meta[1] or 1), tonumber(meta[2] or 0)
  local sequence = before > 0 and math.min(before - 1, last) or last
  local found = {}
  while sequence >= first and #found < limit and step > 0 do
    local it = row(t, text(sequence * PARTITIONS + partition(t.tag)), false)
    if it then
      found[#found + 1] = it
    end
    sequence, step = sequence - 1, step - 1
  end
  return { sequence >= first and #found < limit and sequence + 1 or 0, found }
end

local function attempts_of(t, webhook, number, it)
  local attempts = {}
  for try = 1, it[D.attempts] do
    attempts[try] = call('HGET', t.webhook .. webhook, 'a' .. number .. '.' .. try)
  end
  return attempts
end

-- Return seven values and the attempts for each delivery of a webhook.
local function read_deliveries(keys, args)
  local t = begin(keys[1])
  local webhook = args[1]
  local all, last = deliveries(t, webhook)
  local found = {}
  for number = 0, last do
    local each = all[number]
    if each then
      local attempts = attempts_of(t, webhook, number, each)
      local event = call('HGET', t.webhook .. webhook, 'e' .. each[D.event])
      local due_at = text(each[D.due_at])
      found[#found + 1] = { number, each[D.destination], event, each[D.state], each[D.reason], due_at, attempts }
    end
  end
  return found
end

-- Return sequence numbers between which the webhooks are that came in a time: after the first, up to the last. They are
-- in order of arrival, or nearly; what is no more there came before all others.
local function span(t, since, til)
  local meta = call('HMGET', t.tag .. ':meta', 'first', 'last')
  local first, last = tonumber(meta[1] or 1), tonumber(meta[2] or 0)
  local function came_by(at)
    local low, high = first - 1, last
    while low < high do
      local middle = math.ceil((low + high) / 2)
      local stored = call('HGET', t.webhook .. text(middle * PARTITIONS + partition(t.tag)), 'w')
      if not stored or unpacked(stored)[W.received_at] < at then
        low = middle
      else
        high = middle - 1
      end
    end
    return low
  end
  return since > 0 and came_by(since) or first - 1, til < NEVER and came_by(til) or last
end

-- Return up to `limit` numbers of webhooks, newest first: those of an index, or all. They came in a time, before a
-- number, after another. Also return whether there may be more.
local function candidates(t, wanted, before, limit)
  local after, last = span(t, wanted.since, wanted.til)
  local low, high = after * PARTITIONS + partition(t.tag), math.min(before - 1, last * PARTITIONS + partition(t.tag))
  local found, seen, more = {}, {}, false
  local function add(webhook)
    local number = tonumber(webhook)
    if not seen[number] and number > low and number <= high then
      seen[number] = true
      found[#found + 1] = number
    end
  end
  local function add_set(key, most, least)
    local members = call('ZRANGE', key, most, '(' .. least, 'BYSCORE', 'REV', 'LIMIT', 0, limit)
    for _, member in ipairs(members) do
      add(string.match(member, '^%d+'))
    end
    more = more or #members == limit
  end
  local function add_webhooks(key)
    add_set(key, text(high), text(low))
  end
  if #wanted.subjects > 0 then
    for _, key in ipairs(wanted.subjects) do
      add_webhooks(t.tag .. ':n:' .. key)
    end
  elseif wanted.id ~= '' then
    add_webhooks(t.tag .. ':id:' .. wanted.id)
    add(call('HGET', t.tag .. ':ids', wanted.id) or 0)
  elseif wanted.state == PARKED or wanted.state == DEAD then
    local set = t.tag .. (wanted.state == DEAD and ':dead' or ':parked')
    add_set(set, where(text(high), NUMBERS - 1), where(text(low), NUMBERS - 1)) -- several may be of one webhook
  elseif wanted.type ~= '' then
    add_webhooks(t.tag .. ':type:' .. wanted.type)
  elseif wanted.source ~= '' then
    add_webhooks(t.tag .. ':source:' .. wanted.source)
  else
    local sequence = math.floor((high - partition(t.tag)) / PARTITIONS)
    while sequence > after and #found < limit do
      add(sequence * PARTITIONS + partition(t.tag))
      sequence = sequence - 1
    end
    more = sequence > after
  end
  table.sort(found, function(a, b) return a > b end)
  for index = limit + 1, #found do
    found[index], more = nil, true
  end
  return found, more
end

-- Look at up to `limit` webhooks before a number. Return the last that was looked at (0: there are no more), and those
-- that there are, newest first, each with how many of its deliveries are in which state.
local function search(keys, args)
  local t = begin(keys[1])
  local read = reader(args)
  local before, limit = read.number(), read.number()
  local wanted = { since = read.number(), til = read.number(), id = read.text(), source = read.text() }
  wanted.type, wanted.state, wanted.subjects = read.text(), read.number(), read.rest()
  local numbers, more = candidates(t, wanted, before, limit)
  local found = {}
  for _, number in ipairs(numbers) do
    local webhook = text(number)
    local it = row(t, webhook, false)
    if it then
      local all, last = deliveries(t, webhook)
      local states = {}
      for place = 0, last do
        local state = all[place] and all[place][D.state]
        if state then
          states[state] = (states[state] or 0) + 1
        end
      end
      local flat = {}
      for state, many in pairs(states) do
        flat[#flat + 1] = state
        flat[#flat + 1] = many
      end
      found[#found + 1] = { it, flat }
    end
  end
  return { more and numbers[#numbers] or 0, found }
end

-- Return what a list shows of one delivery.
local function listed(t, webhook, number, it)
  local stored = call('HMGET', t.webhook .. webhook, 'w', 'e' .. it[D.event])
  local came = unpacked(stored[1])
  return {
    tonumber(webhook), tonumber(number), it[D.destination], stored[2], it[D.state], it[D.reason], text(it[D.due_at]),
    it[D.attempts], came[W.source], came[W.type], came[W.id],
  }
end

-- Return members of a set of deliveries before a place, newest first.
local function members_before(key, webhook, number, limit)
  local most = webhook > 0 and '(' .. where(webhook, number) or '+inf'
  return call('ZRANGE', key, most, '-inf', 'BYSCORE', 'REV', 'LIMIT', 0, limit)
end

-- Look at up to `step` deliveries before a place, newest first. Return up to `limit` that fit, and the place of the last
-- that was looked at (0: there are no more).
local function list_deliveries(keys, args)
  local t = begin(keys[1])
  local read = reader(args)
  local webhook, number, limit, step = read.number(), read.number(), read.number(), read.number()
  local destination, by_reason, reason = read.text(), read.number(), read.text()
  local states, many = {}, 0
  for _, each in ipairs(read.rest()) do
    states[tonumber(each)], many = true, many + 1
  end
  local found, last_webhook, last_number = {}, 0, 0
  local function look(its_webhook, its_number, it)
    last_webhook, last_number, step = tonumber(its_webhook), tonumber(its_number), step - 1
    if it and (destination == '' or it[D.destination] == destination) and (by_reason == 0 or it[D.reason] == reason)
      and (many == 0 or states[it[D.state]])
    then
      found[#found + 1] = listed(t, its_webhook, its_number, it)
    end
    return #found < limit and step > 0
  end
  local set
  if many == 1 and states[DEAD] then
    set = t.tag .. ':dead'
    if destination ~= '' and by_reason == 1 then
      set = set .. ':' .. destination .. '\n' .. reason
    end
  elseif many == 1 and states[PARKED] then
    set = t.tag .. ':parked'
  end
  if set then
    for _, member in ipairs(members_before(set, webhook, number, step)) do
      local its_webhook, its_number = string.match(member, '^(%d+)%.(%d+)$')
      if not look(its_webhook, its_number, delivery_of(t, member)) then
        return { last_webhook, last_number, found }
      end
    end
    return { 0, 0, found }
  end
  local meta = call('HMGET', t.tag .. ':meta', 'first', 'last')
  local first, sequence = tonumber(meta[1] or 1), tonumber(meta[2] or 0)
  if webhook > 0 then
    sequence = math.min(sequence, math.floor((webhook - partition(t.tag)) / PARTITIONS))
  end
  while sequence >= first do
    local its_webhook = text(sequence * PARTITIONS + partition(t.tag))
    local all, last = deliveries(t, its_webhook)
    if webhook == tonumber(its_webhook) then
      last = math.min(last, number - 1)
    end
    for its_number = last, 0, -1 do
      if all[its_number] and not look(its_webhook, its_number, all[its_number]) then
        return { last_webhook, last_number, found }
      end
    end
    step = step - 1
    if step <= 0 then
      return { tonumber(its_webhook), 0, found }
    end
    sequence = sequence - 1
  end
  return { 0, 0, found }
end

-- Return destination, reason, how many, the oldest and the newest webhook of what is dead.
local function dead(keys)
  local found = {}
  for _, group in ipairs(call('SMEMBERS', keys[1] .. ':deaths')) do
    local set = keys[1] .. ':dead:' .. group
    local destination, reason = string.match(group, '^(.-)\n(.*)$')
    local oldest, newest = call('ZRANGE', set, 0, 0), call('ZRANGE', set, -1, -1)
    found[#found + 1] = {
      destination, reason, call('ZCARD', set), tonumber(string.match(oldest[1], '^%d+')),
      tonumber(string.match(newest[1], '^%d+')),
    }
  end
  return found
end

local function revive(t, webhook, number, it, now)
  local was = it[D.state]
  untrack(t, webhook, number, it)
  if was == PARKED then
    dequeue(t, webhook, number, it)
  end
  it[D.state], it[D.reason], it[D.due_at], it[D.held_until], it[D.first_try_at] = DUE, '', now, 0, 0
  put(t, webhook, number, it, was)
  t.due[it[D.destination]] = true
end

-- Let a dead or parked delivery start again. Return its destination, or false when it is in no such state.
local function retry(keys, args)
  local t = begin(keys[1])
  local it = delivery_of(t, args[1] .. '.' .. args[2])
  if not it or (it[D.state] ~= DEAD and it[D.state] ~= PARKED) then
    return false
  end
  revive(t, args[1], args[2], it, tonumber(args[3]))
  finish(t)
  return it[D.destination]
end

-- Let up to `limit` dead deliveries before a place start again. Return how many, who has work, and the place of the last
-- that was looked at (0: there are no more).
local function retry_dead(keys, args)
  local t = begin(keys[1])
  local read = reader(args)
  local webhook, number, limit, step = read.number(), read.number(), read.number(), read.number()
  local destination, by_reason, reason, now = read.text(), read.number(), read.text(), read.number()
  local set, done = t.tag .. ':dead', 0
  if destination ~= '' and by_reason == 1 then
    set = set .. ':' .. destination .. '\n' .. reason
  end
  for _, member in ipairs(members_before(set, webhook, number, step)) do
    local its_webhook, its_number = string.match(member, '^(%d+)%.(%d+)$')
    local it = delivery_of(t, member)
    if it and (destination == '' or it[D.destination] == destination) and (by_reason == 0 or it[D.reason] == reason) then
      revive(t, its_webhook, its_number, it, now)
      done = done + 1
    end
    step = step - 1
    if done == limit or step == 0 then
      return { done, finish(t), tonumber(its_webhook), tonumber(its_number) }
    end
  end
  return { done, finish(t), 0, 0 }
end

-- Return what the payment of these keys is called: by its purchase (0 first) or another event, whose webhook, the name.
local function order_of(keys, args)
  local best
  for _, number in ipairs(call('HMGET', keys[1] .. ':keys', unpack(args))) do
    if number then
      for _, each in ipairs(unpacked(call('HGET', keys[1] .. ':payments', number))[CLAIMS_OF]) do
        local found = { each[C.name] == 'purchase' and 0 or 1, tonumber(each[C.webhook]), each[C.order] }
        if each[C.order] ~= '' and (not best or found[1] < best[1] or (found[1] == best[1] and found[2] < best[2])) then
          best = found
        end
      end
    end
  end
  return best or false
end

-- moving to another store

local function extent(keys)
  local t = keys[1]
  return call('HLEN', t .. ':seen') + call('HLEN', t .. ':payments') + call('ZCARD', t .. ':told')
end

-- Call `visit` with a step of webhooks from a sequence number on. Return where to go on (0 at the end).
local function walk(t, from, step, visit)
  local meta = call('HMGET', t.tag .. ':meta', 'first', 'last')
  local sequence, last = math.max(from, tonumber(meta[1] or 1)), tonumber(meta[2] or 0)
  local til = math.min(last, sequence + step - 1)
  for each = sequence, til do
    local webhook = text(each * PARTITIONS + partition(t.tag))
    local came = call('HGET', t.webhook .. webhook, 'w')
    if came then
      visit(webhook, unpacked(came))
    end
  end
  return til < last and til + 1 or 0
end

-- Return which webhooks came, and when.
local function arrivals(keys, args)
  local found = {}
  local after = walk(begin(keys[1]), tonumber(args[1]), tonumber(args[2]), function(webhook, came)
    found[#found + 1] = { came[W.received_at], tonumber(webhook) }
  end)
  return { after, found }
end

-- Return what became of a step of webhooks that came in a time, from a sequence number on (0: from the first).
local function accounted(keys, args)
  local t, found = begin(keys[1]), {}
  local from, step, since, til = tonumber(args[1]), tonumber(args[2]), tonumber(args[3]), tonumber(args[4])
  local after, last = span(t, tonumber(args[5]), tonumber(args[6]))
  from = math.max(from, after + 1)
  local on = walk(t, from, math.min(step, last - from + 1), function(webhook, came)
    if came[W.received_at] < since or came[W.received_at] >= til then
      return
    end
    local it, events, made = head(t, webhook), {}, {}
    for place = EVENTS_FROM, #it do
      local sealed = call('HGET', t.webhook .. webhook, 'e' .. (place - EVENTS_FROM))
      if sealed then
        events[#events + 1] = it[place]
        events[#events + 1] = sealed
      end
    end
    local all, highest = deliveries(t, webhook)
    for number = 0, highest do
      local each = all[number]
      if each then
        made[#made + 1] = { it[EVENTS_FROM + each[D.event]], each[D.destination], each[D.state], each[D.reason] }
      end
    end
    found[#found + 1] = { tonumber(webhook), came[W.source], it[N.notes], events, made }
  end)
  return { on > 0 and on <= last and on or 0, found }
end

-- Return all of a webhook: as it came, whether it waits, teaches, whom it names, its events, its deliveries.
local function copied(keys, args)
  local t, webhook = begin(keys[1]), args[1]
  local key = t.webhook .. webhook
  local stored = call('HMGET', key, 'w', 'b')
  if not stored[1] then
    return false
  end
  local came, it = unpacked(stored[1]), head(t, webhook)
  local teaches, subjects = subjects_of(t, webhook)
  local waits = subjects[1] and call('ZSCORE', t.tag .. ':u:' .. subjects[1], webhook)
  local events, found = {}, {}
  for place = EVENTS_FROM, #it do
    events[#events + 1] = { it[place], call('HGET', key, 'e' .. (place - EVENTS_FROM)) }
  end
  local all, last = deliveries(t, webhook)
  for number = 0, last do
    local each = all[number]
    if each then
      found[#found + 1] = {
        number, each[D.event], each[D.destination], each[D.state], each[D.reason], text(each[D.due_at]),
        each[D.held_until], each[D.first_try_at], each[D.late], each[D.at] or 0, each[D.lane] or false,
        call('HGET', key, 'r' .. number), attempts_of(t, webhook, number, each),
      }
    end
  end
  return {
    came[W.key], came[W.source], came[W.account], came[W.type], came[W.id], came[W.occurred_at], came[W.received_at],
    came[W.test], it[N.mapping], it[N.notes], stored[2], waits and 1 or 0, teaches, subjects, events, found,
  }
end

-- Return a step of payments: the duplicate key, source and account of the webhook that each counts from, its keys and
-- its claims, which name webhooks in the same way.
local function copied_payments(keys, args)
  local t, found = begin(keys[1]), {}
  local after = walk(t, tonumber(args[1]), tonumber(args[2]), function(webhook, came)
    for _, payment in pairs(payments_of(t, webhook)) do
      local claims = {}
      for index, each in ipairs(payment[CLAIMS_OF]) do
        local of = call('HGET', t.webhook .. each[C.webhook], 'w')
        claims[index] = {
          each[C.name], each[C.event_id], of and unpacked(of)[W.key] or '', each[C.event], each[C.held_until],
          each[C.hold], each[C.order],
        }
      end
      found[#found + 1] = { came[W.key], came[W.source], came[W.account], payment[KEYS_OF], claims }
    end
  end)
  return { after, found }
end

-- Store a delivery of another store's.
local function adopt_delivery(t, webhook, read)
  local number = read.number()
  local it = { read.number(), read.text(), read.number(), read.text(), read.number(), read.number(), 0 }
  it[D.first_try_at], it[D.fence], it[D.late] = read.number(), 0, read.number()
  local at, lane, again, rendered = read.number(), read.text(), read.number(), read.text()
  if lane ~= '' then
    it[D.at], it[D.lane] = at, lane
  end
  for try, attempt in ipairs(read.texts()) do
    it[D.attempts] = try
    call('HSET', t.webhook .. webhook, 'a' .. number .. '.' .. try, attempt)
  end
  if again == 1 then
    set_field(t, 'r' .. number, rendered)
  end
  set_field(t, 'd' .. number, pack(it))
  count(t, it[D.destination], it[D.state], 1)
  track(t, webhook, number, it)
  if it[D.state] < SENT then
    t.queued[#t.queued + 1] = { number, it }
    t.due[it[D.destination]] = true
  end
  return number
end

-- Store a webhook with what became of it in another store, unless it is known. Return whether it was news.
local function adopt(keys, args)
  local t = begin(keys[1])
  local read = reader(args)
  local fingerprint, new = read.text(), read_acceptance(read)
  if call('HEXISTS', t.tag .. ':seen', new.key) == 1 then
    return 0
  end
  local webhook = add_webhook(t, fingerprint, new)
  local it = t.heads[webhook]
  for index, event in ipairs(new.events) do
    it[#it + 1] = event.id
    set_field(t, 'e' .. (index - 1), event.sealed)
  end
  for _ = 1, read.number() do
    it[N.deliveries] = adopt_delivery(t, webhook, read) + 1
  end
  set_field(t, 'n', pack(it))
  flush(t, webhook)
  call('HSET', t.tag .. ':seen', new.key, webhook)
  finish(t)
  return 1
end

-- Make what was one payment in another store one here, with its claims. What is known of a claim here stays.
local function adopt_payment(keys, args)
  local t = begin(keys[1])
  local read = reader(args)
  local now, first, same, claims = read.number(), read.text(), read.texts(), {}
  for index = 1, read.number() do
    claims[index] = {
      read.text(), read.text(), read.text(), read.number(), read.number(), read.number(), read.text(),
    }
  end
  local webhook = call('HGET', t.tag .. ':seen', first)
  if not webhook then
    return 0 -- retention took it here, and so the payment
  end
  local it = head(t, webhook)
  local fresh = text(tonumber(webhook) * 1000 + it[N.payments])
  local number, payment = unite(t, same, fresh, now)
  if number == fresh then
    fresh_payment(webhook, it)
    t.dirty[webhook] = true
  end
  local news = {}
  for _, each in ipairs(claims) do
    each[C.webhook] = call('HGET', t.tag .. ':seen', each[C.webhook]) or '0' -- nobody's number, before all others
    local standing = claim_of(payment, each[C.name])
    if not standing or not same_event(standing, each) then
      news[#news + 1] = each
    end
  end
  merge(t, payment, { {}, news }, now)
  call('HSET', t.tag .. ':payments', number, pack(payment))
  finish(t)
  return 1
end

local function told(keys, args)
  return call('ZRANGE', keys[1] .. ':told', args[1], args[2], 'WITHSCORES')
end

local function adopt_told(keys, args)
  for index = 1, #args, 2 do
    call('ZADD', keys[1] .. ':told', 'GT', args[index + 1], args[index])
  end
  return 1
end

-- Write down what was asked about data in another store, unless it is or was written down here.
local function adopt_request(keys, args)
  local t, packed = begin(keys[1]), pack(args)
  for _, known in ipairs(call('HVALS', t.tag .. ':asked')) do
    if known == packed then
      return 0
    end
  end
  for _, done in ipairs(call('HVALS', t.tag .. ':answered')) do
    local known, same = unpacked(done), true
    for index = 1, 4 do
      same = same and known[index] == args[index]
    end
    if same then
      return 0
    end
  end
  ask(t, args)
  return 1
end

-- Say whose this partition is, if nobody's yet. Return what is stored.
local function open(keys, args)
  local meta = keys[1] .. ':meta'
  for index, field in ipairs({ 'fingerprint', 'partitions', 'schema' }) do
    call('HSETNX', meta, field, args[index])
  end
  return call('HMGET', meta, 'fingerprint', 'partitions', 'schema', 'ended')
end

local function touch(keys)
  return call('HSET', keys[1] .. ':meta', 'probe', '')
end

-- Remember which links have ended for good.
local function end_links(keys, args)
  local meta = keys[1] .. ':meta'
  local known = tonumber(call('HGET', meta, 'ended') or 0)
  if tonumber(args[1]) > known then
    call('HSET', meta, 'ended', args[1])
  end
  return 1
end

-- Return, for each destination that anything waits for: its name, how much is due, how much is pending, and when the
-- first of its queue was due; what was given back (0) is first in line, and nobody knows since when.
local function backlog(keys, args)
  local found = {}
  local counts = call('HGETALL', keys[1] .. ':counts')
  for index = 1, #counts, 2 do
    local destination = string.match(counts[index], '^pending:(.*)$')
    if destination then
      local queue = keys[1] .. ':due:' .. destination
      local first = call('ZRANGE', queue, '(0', args[1], 'BYSCORE', 'LIMIT', 0, 1, 'WITHSCORES')
      local due = call('ZCOUNT', queue, '-inf', args[1])
      found[#found + 1] = { destination, due, tonumber(counts[index + 1]), first[2] or '' }
    end
  end
  return found
end

local function register(name, callback, flags)
  redis.register_function({ function_name = 'gateway_@version@_' .. name, callback = callback, flags = flags })
end

register('accept', accept, {})
register('replay', replay, {})
register('keep', keep, {})
register('ask', function(keys, args) return ask(begin(keys[1]), args) end, {})
register('link', link, {})
register('teach', teach, {})
register('open', open, {})
register('touch', touch, {})
register('adopt', adopt, {})
register('adopt_payment', adopt_payment, {})
register('adopt_told', adopt_told, {})
register('adopt_request', adopt_request, {})
register('retry', retry, {})
register('retry_dead', retry_dead, {})
-- These make room, or finish what is begun: a full server takes them.
register('lease', lease, { 'allow-oom' })
register('settle', settle, { 'allow-oom' })
register('tell', tell, { 'allow-oom' })
register('unwait', unwait, { 'allow-oom' })
register('unlink', unlink, { 'allow-oom' })
register('fulfil', fulfil, { 'allow-oom' })
register('forget', forget, { 'allow-oom' })
register('purge', purge, { 'allow-oom' })
register('end_links', end_links, { 'allow-oom' })
-- These read.
register('asked', asked, { 'no-writes' })
register('naming', naming, { 'no-writes' })
register('of_account', of_account, { 'no-writes' })
register('webhook', read_webhook, { 'no-writes' })
register('list', list, { 'no-writes' })
register('deliveries', read_deliveries, { 'no-writes' })
register('search', search, { 'no-writes' })
register('list_deliveries', list_deliveries, { 'no-writes' })
register('dead', dead, { 'no-writes' })
register('accounted', accounted, { 'no-writes' })
register('order_of', order_of, { 'no-writes' })
register('extent', extent, { 'no-writes' })
register('backlog', backlog, { 'no-writes' })
register('arrivals', arrivals, { 'no-writes' })
register('copied', copied, { 'no-writes' })
register('copied_payments', copied_payments, { 'no-writes' })
register('told', told, { 'no-writes' })
