#!/bin/sh
# Requests that change on one processor while the stub handles them on another: XSA-155.
#: suite trixie
#: device e1000e,netdev=n0,addr=5
#: cpus 2
#: timeout 300
. /rig/scenarios/lib.sh
# To repeat a run, give the seed that it printed: `--set SEED=N`.
SEED=${SEED:-$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')}
say "seed $SEED"
log=$(stub_log hostile)
bare_guest hostile "mode=race seed=$SEED" 'cpus = "1"'
check "the hostile guest" bulkhead run /root/hostile.cfg --device 0000:00:05.0
stub=$(bulkhead status --json | jq -r '.stubs[].name')
number=$(xl domid "$stub")
check "the stub on the other processor" xl vcpu-pin "$stub" 0 0
within 90 "it comes to its end" grep -qE 'INFO  done|failed:|panic' "$log"
tr -d '\r' <"$log" | grep -E 'failed|panic'
results=$(tr -d '\r' <"$log" | sed -n 's/.*raced: //p')
# shellcheck disable=SC2086 # four numbers
set -- $results
equal "no answer was that of a request that never stood in the page, and at its end the stub answers" 4 $#
bulkhead status --json >/rig/out/status.json
of() { jq -c ".stubs[] | $1" /rig/out/status.json; }
say "by status: $(of .served.counters)"
figure reads-answered-as-sent "$1"
figure reads-answered-as-changed "$2"
figure msix-granted "$3"
figure msix-refused "$4"
figure answers-withheld "$(of .served.counters.late_answers)"
check "requests did change while they were handled" [ "$2" -gt 0 ]
check "and so did numbers of vectors, to one that is refused" [ "$4" -gt 0 ]
check "answers to requests that were others by then were withheld" [ "$(of .served.counters.late_answers)" -gt 0 ]
equal "the stub is the domain that it was" "$number" "$(xl domid "$stub")"
equal "interrupts" '["intx"]' "$(of '[.devices[].mode]')"
check "bulkhead destroy" bulkhead destroy hostile
quiet 0000:00:05.0
success
