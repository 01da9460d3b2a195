#!/bin/sh
# How many instructions a request takes through xen-pciback and through Bulkhead, whatever the load of this machine.
#: suite bookworm
#: device e1000e,netdev=n0,addr=5
#: icount
#: timeout 900
. /rig/scenarios/lib.sh
BDF=0000:00:05.0
COUNT=${COUNT:-200}
FAILURES=${FAILURES:-9}
# The guest's looks at the clock are not to count. Xen traps them where the time stamp counter could change.
NATIVE='tsc_mode = "native"'

# told NAME SUFFIX: the guest has measured; its figures get this suffix.
told() {
    within 100 "$1: it measures" is_done "$1"
    check "$1: it has come to its end" grep -q 'INFO  done' "$(stub_log "$1")"
    measured "$1" >"/tmp/$1"
    while read -r what min p50 p90 max; do
        say "$what$2: min $min, p50 $p50, p90 $p90, max $max"
        figure "$what$2" "$p50" instructions
    done <"/tmp/$1"
}

# created NAME COMMAND...: a figure of how long the command takes, on a machine that does nothing else.
created() {
    name=$1
    shift
    read -r began _ </proc/uptime
    check "$name: $*" "$@"
    read -r now _ </proc/uptime
    figure "create-$name" $(((${now%.*}${now#*.} - ${began%.*}${began#*.}) * 10)) ms
}

bare_guest bulkhead "mode=measure count=$COUNT" "$NATIVE"
check "the first bulkhead run starts the service" bulkhead run /root/bulkhead.cfg --device $BDF
told bulkhead -bulkhead
check "bulkhead destroy" bulkhead destroy bulkhead

# In each round but the first the stub fails at the first read, and answers it in its next run.
bare_guest restarts "mode=measure count=2 rounds=$((FAILURES + 1))" "$NATIVE"
created bulkhead bulkhead run /root/restarts.cfg --kernel /rig/bulkhead-stub-inject --device $BDF
inject=/local/domain/$(xl domid restarts-bulkhead)/control/bulkhead-inject
for failure in $(seq "$FAILURES"); do
    within 30 "failure $failure" asks restarts round
    xenstore-write "$inject" "conf_read:panic:1:$failure"
    usleep 200000
    answer_guest restarts
done
within 30 "restarts: it measures" is_done restarts
check "restarts: it has come to its end" grep -q 'INFO  done' "$(stub_log restarts)"
measured restarts | awk '$1 == "read" && rounds++ { print $5 }' | sort -n >/tmp/restarts
equal "restarts of the stub" "$FAILURES" "$(grep -c ' restart [0-9]* after' "$(stub_log restarts-bulkhead)")"
say "from the request to the answer: $(tr '\n' ' ' </tmp/restarts)instructions"
figure restart-bulkhead "$(sed -n "$(((FAILURES + 1) / 2))p" /tmp/restarts)" instructions
check "bulkhead destroy" bulkhead destroy restarts

check "xen-pciback takes the card" xl pci-assignable-add $BDF
bare_guest pciback "mode=measure count=$COUNT" "$NATIVE" "pci = [ \"$BDF\" ]"
created pciback xl create -q /root/pciback.cfg
told pciback -pciback
check "pciback: xl destroy" xl destroy pciback

bare_guest pong "mode=pong" "$NATIVE"
check "pong: xl create" xl create -q /root/pong.cfg
pong=$(xl domid pong)
bare_guest ping "mode=ping peer=$pong count=$COUNT" "$NATIVE"
check "ping: xl create" xl create -q /root/ping.cfg
within 20 "ping: it has a port" asks ping peer
ping=$(xl domid ping)
xenstore-write "/local/domain/$pong/data/peer" "$ping $(xenstore-read "/local/domain/$ping/data/ask" | cut -d ' ' -f 2)"
answer_guest ping
told ping ''
success
