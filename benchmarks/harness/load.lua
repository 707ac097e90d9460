-- What wrk sends, and one line of JSON about how it went:
--   wrk -t1 ... -s load.lua URL [-- BODY_FILE JSON_BYTES MODE [CONNECTIONS]]
-- No BODY_FILE: plain GET. MODE "same": one request over and over. "unique": each has its own id and tensor.
-- "steady": also times the answers, to leave the first and the cut-off last batch of a slow model out of the rate.
-- JSON_BYTES 0: a body of another kind, whose headers are given to wrk with -H.

local ID = "00000000" -- what the body has where a unique id belongs; a tensor's first 8 bytes are overwritten too
local SAME_BATCH_SECONDS = 0.005 -- answers closer than this came from one batch: a steady model takes longer

local function read_file(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read("*a")
  file:close()
  return text
end

local function send_unique_requests(json_bytes)
  local text = wrk.format()
  local id_at = assert(text:find(ID, 1, true))
  local tensor_at = #text - #wrk.body + json_bytes + 1
  local before_id = text:sub(1, id_at - 1)
  local before_tensor = text:sub(id_at + #ID, tensor_at - 1)
  local rest = text:sub(tensor_at + #ID)
  local sent = 0
  request = function()
    sent = sent + 1
    local id = string.format("%08d", sent)
    return before_id .. id .. before_tensor .. id .. rest -- eight ASCII digits are two small finite FP32 numbers
  end
end

local function time_answers(connections)
  local ffi = require("ffi")
  ffi.cdef("typedef struct { long s; long ns; } clock_time; int clock_gettime(int clock, clock_time *now);")
  local now = ffi.new("clock_time")
  local counting = false
  answered = 0
  response = function()
    ffi.C.clock_gettime(1, now) -- CLOCK_MONOTONIC
    local at = tonumber(now.s) + tonumber(now.ns) / 1e9
    answered = answered + 1
    counting = counting or (answered > connections and at - last_answer_at > SAME_BATCH_SECONDS)
    if not counting then
      first_round_answers, first_round_at = answered, at
    end
    last_answer_at = at
  end
end

local threads = {}

function setup(thread)
  table.insert(threads, thread)
end

function init(args)
  if not args[1] then
    return
  end
  local json_bytes = tonumber(args[2])
  wrk.method = "POST"
  wrk.body = read_file(args[1])
  if json_bytes > 0 then
    wrk.headers["Content-Type"] = "application/octet-stream"
    wrk.headers["Inference-Header-Content-Length"] = tostring(json_bytes)
  end
  if args[3] == "unique" then
    send_unique_requests(json_bytes)
  elseif args[3] == "steady" then
    time_answers(tonumber(args[4]))
  end
end

local function steady_rate(thread)
  local first, last = thread:get("first_round_at"), thread:get("last_answer_at")
  if not first or last <= first then
    return 0
  end
  return (thread:get("answered") - thread:get("first_round_answers")) / (last - first)
end

function done(summary, latency)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  local seconds = summary.duration / 1e6
  local rate = summary.requests / seconds
  if threads[1]:get("answered") then
    rate = steady_rate(threads[1])
  end
  print(string.format(
    'RESULT {"requests_per_s":%.3f,"p50_ms":%.4f,"p99_ms":%.4f,"mean_ms":%.4f,"requests":%d,"seconds":%.4f,"failed":%d}',
    rate, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency.mean / 1e3,
    summary.requests, seconds, failed))
end
