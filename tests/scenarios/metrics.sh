#!/bin/sh
# Metrics of a guest that uses its device, on standard output, by HTTP and in a file: what happens is counted, also while the
# service or the stub dies.
#: device e1000e,netdev=n0,addr=5
#: suite bookworm
#: timeout 700
. /rig/scenarios/lib.sh
BDF=0000:00:05.0
ADDRESS=127.0.0.1:9742

# value NAME [LABEL]: the number of a metric that was read last. LABEL picks one of several series.
value() { awk -v name="$1" -v label="$2" '{ split($1, part, "{") } part[1] == name && (label == "" || index($0, label)) { print $NF }' /tmp/metrics; }
read_metrics() { bulkhead metrics --format prometheus >/tmp/metrics; }
# counts NAME NUMBER [LABEL]: the metric has that value, read anew.
counts() { read_metrics && [ "$(value "$1" "$3")" = "$2" ]; }
# ask METHOD ACCEPT: the answer of the server, with its head.
ask() {
    printf '%s /metrics HTTP/1.1\r\nHost: dom0\r\nAccept: %s\r\n\r\n' "$1" "$2" | nc "${ADDRESS%:*}" "${ADDRESS#*:}"
}

# --- without a service and without guests
bulkhead metrics >/tmp/metrics
equal "a service that does not run" 0 "$(value bulkhead_service_up)"
equal "the end of the text" "# EOF" "$(tail -n 1 /tmp/metrics)"

# --- a guest
guest_config g1
check "bulkhead run" bulkhead run /root/g1.cfg --device $BDF
check "e1000e comes up" network_up g1
check "metrics" read_metrics
equal "a service that runs" 1 "$(value bulkhead_service_up)"
equal "the stub is served" 1 "$(value bulkhead_stub_served)"
equal "pirqs in use" 3 "$(value bulkhead_device_pirqs)"
equal "pirqs left of Xen's 32" 29 "$(value bulkhead_guest_pirqs_left)"
equal "MSI-X was turned on" 1 "$(value bulkhead_stub_requests_total enable_msix)"
for kind in stub service; do
    uptime=$(value bulkhead_${kind}_uptime_seconds)
    say "$kind: $uptime s"
    check "time since the start of the $kind" awk -v time="$uptime" 'BEGIN { exit !(time > 0 && time < 300) }'
done
series=$(grep -c '^[^#].*stub="g1-bulkhead"' /tmp/metrics)
check "$series series of the stub are 60 at most" [ "$series" -le 60 ]

before=$(value bulkhead_stub_requests_total conf_read)
check "100 reads" guest-run g1 240 'i=0; while [ $i -lt 100 ]; do setpci -s 00:00.0 STATUS >/dev/null; i=$((i + 1)); done'
check "metrics" read_metrics
after=$(value bulkhead_stub_requests_total conf_read)
check "the reads are counted ($before, then $after)" [ $((after - before)) -ge 100 ]
say "reads: $(value bulkhead_stub_request_duration_seconds_sum conf_read) s in all"
grep 'duration_seconds_bucket.*op="conf_read"' /tmp/metrics
# Reads of functions that are not there have a time, and are counted as refused.
timed=$(value bulkhead_stub_request_duration_seconds_count conf_read)
refused=$(value bulkhead_stub_requests_refused_total)
check "each read has a time ($timed; $after served, $refused requests refused)" \
    [ "$timed" -ge "$after" -a "$timed" -le $((after + refused)) ]
# The driver has written to registers that no policy handles: how many of the next ones are named depends on it.
dropped() { value bulkhead_stub_writes_dropped_total | awk '{ sum += $1 } END { print sum + 0 }'; }
before=$(dropped)
check "a write that no policy handles" in_guest g1 "setpci -s 00:00.0 LATENCY_TIMER=40"
check "metrics" read_metrics
equal "dropped writes" $((before + 1)) "$(dropped)"
grep 'bulkhead_stub_writes_dropped_total{' /tmp/metrics

# --- by HTTP and in a file
bulkhead metrics --listen $ADDRESS >/tmp/server 2>&1 &
server=$!
within 10 "the server answers" wget -q -O /dev/null "http://$ADDRESS/metrics"
ask GET application/openmetrics-text >/tmp/answer
check "the newer format for who asks for it" grep -q "^Content-Type: application/openmetrics-text; version=1.0.0" /tmp/answer
equal "its end" "# EOF" "$(tail -n 1 /tmp/answer)"
ask GET '*/*' >/tmp/answer
check "the older format for others" grep -q "^Content-Type: text/plain; version=0.0.4" /tmp/answer
check "the counters by HTTP" grep -q '^bulkhead_stub_requests_total{guest="g1",' /tmp/answer
check "HEAD has no body" sh -c "! echo \"\$1\" | grep -q bulkhead_" - "$(ask HEAD '*/*')"
check "nothing else is done" sh -c 'echo "$1" | grep -q "^HTTP/1.1 405"' - "$(ask POST '*/*')"
mkdir /tmp/textfile
check "a file" bulkhead metrics --textfile /tmp/textfile
equal "names and permissions of files" "-rw-r--r-- bulkhead.prom" "$(ls -lA /tmp/textfile | awk '$1 != "total" { print $1, $NF }')"
check "it has the counters" grep -q '^bulkhead_stub_requests_total{guest="g1",' /tmp/textfile/bulkhead.prom

# --- deaths
check "the serving worker is killed" kill -KILL "$(service_pid)"
within 20 "the takeover is counted" counts bulkhead_service_takeovers_total 1 died
within 20 "the stub is served" counts bulkhead_stub_served 1
check "the stub is destroyed" xl destroy g1-bulkhead
within 60 "its return is counted" counts bulkhead_stub_restarts_total 1 recreated
within 20 "the stub counts again" counts bulkhead_stub_requests_refused_total 0
uptime=$(value bulkhead_stub_uptime_seconds)
check "the new stub is young ($uptime s)" awk -v time="$uptime" 'BEGIN { exit !(time < 60) }'

cp /tmp/metrics /tmp/prometheus
bulkhead metrics >/tmp/openmetrics
for format in prometheus openmetrics; do
    echo "--- $format"
    cat /tmp/$format
    echo "---"
done
check "the guest is destroyed" bulkhead destroy g1
read_metrics
equal "series of stubs that are gone" "" "$(grep -o '^[^#].*stub="[^"]*"' /tmp/metrics)"
kill $server
success
