#!/bin/sh
# A declared guest has its devices at every start, whoever starts it, before its first instruction; one that was started by `run` keeps its devices over reboots.
#: device e1000e,netdev=n0,addr=5
#: device edu,addr=6
#: suite trixie
#: timeout 1500
#: timeout-all 3600
. /rig/scenarios/lib.sh
CARD=0000:00:05.0 EDU=0000:00:06.0
# Restarts of each kind. The whole has twenty.
ROUNDS=${ROUNDS:-$([ "$ALL" ] && echo 20 || echo 1)}
LOG=/var/log/bulkhead/serve.log
FILES=/etc/bulkhead/guests.d

serve() {
    bulkhead serve >>$LOG 2>&1 &
    within 20 "the service serves" complete
}
# pv NAME [LINE]...: writes NAME.cfg, a guest that can have devices.
pv() {
    name=$1
    shift
    guest_config "$name" 'passthrough = "enabled"' 'on_crash = "restart"' "$@"
}
# started NAME: prints how many starts of the guest were before its first instruction, how many were not, and how often it
# had run when its devices stood.
started() {
    awk -v name="guest $1 " 'index($0, name) && /paused before its first instruction/ { before++ }
        index($0, name) && /paused after it had run|runs already/ { late++ }
        index($0, name) && /it has run for 0 ns/ { unrun++ }
        END { print before + 0, late + 0, unrun + 0 }' $LOG
}
# held NAME PATTERN: the guest is paused, and status says why.
held() {
    xl list "$1" | awk 'NR == 2 { exit $5 !~ /p/ }' &&
        bulkhead status --json | jq -r --arg guest "$1" '.starts[] | select(.guest.name == $guest and .held) | .reason' | grep -qE "$2"
}

mkdir -p /var/log/bulkhead
dmesg -c >/dev/null
serve
check "declare" bulkhead declare g1 --device $CARD
cat $FILES/g1.toml
pv g1
check "xl create" xl create /root/g1.cfg
within 60 "it has its card" has g1 $CARD
check "the card comes up" network_up g1
equal "interrupts by status" "msi-x 3" "$(mode_of $CARD)"
equal "starts before the first instruction, others, and with devices before it" "1 0 1" "$(started g1)"

# --- it restarts, from inside, by xl, and by a crash
up=0
inventory | grep -v 'free memory' >/tmp/before
for how in inside xl crash; do
    for round in $(seq "$ROUNDS"); do
        domid=$(xl domid g1)
        case $how in
            inside) in_guest g1 '(sleep 1; reboot -f) >/dev/null 2>&1 & echo started' ;;
            xl) xl reboot -F g1 || xl reboot g1 ;;
            crash) in_guest g1 '(sleep 1; echo c >/proc/sysrq-trigger) >/dev/null 2>&1 & echo started' ;;
        esac >/tmp/check 2>&1
        within 90 "$how $round: it is there again with its card" is_new g1 "$domid" $CARD
        check "$how $round: the card comes up" network_up g1
        equal "$how $round: interrupts by status" "msi-x 3" "$(mode_of $CARD)"
        up=$((up + 1))
    done
done
equal "restarts with the card on MSI-X" $((3 * ROUNDS)) $up
equal "starts before the first instruction, others, and with devices before it" "$((up + 1)) 0 $((up + 1))" "$(started g1)"
inventory | grep -v 'free memory' >/tmp/after
check "nothing leaks" diff /tmp/before /tmp/after

# --- a guest of `run`, without a declaration
guest_config g2
check "run" bulkhead run /root/g2.cfg --device $EDU,msi=0
domid=$(xl domid g2)
check "xl reboot" sh -c "xl reboot -F g2 || xl reboot g2"
within 90 "it keeps its device" is_new g2 "$domid" $EDU
equal "on its terms" "$(bulkhead status --json | jq -r '.stubs[] | select(.guest.name == "g2") | .devices[].terms.msi | keys[0]')" off
check "destroy" bulkhead destroy g2

# --- guests that cannot have their devices
echo 'guest = "g3' >$FILES/g3.toml
pv g3
check "xl create of a guest whose declaration is broken" xl create /root/g3.cfg
within 30 "it is held, and the file is named by line and column" held g3 "g3.toml is broken in line 1, column"
check "declare" sh -c "rm $FILES/g3.toml && bulkhead declare g4 --device $EDU && bulkhead declare g3 --device $EDU"
grep "declared for guest g4 too" /tmp/check || failure "no word of the other declaration"
check "attach starts it" bulkhead attach g3
within 60 "it has its device" has g3 $EDU
pv g4
check "xl create of the other guest with that device" xl create /root/g4.cfg
within 30 "it is held" held g4 "in use by guest g3"
check "destroy ends it" bulkhead destroy g4
refused "it is gone" "." xl domid g4
check "undeclare" bulkhead undeclare g3
domid=$(xl domid g3)
check "xl reboot" sh -c "xl reboot -F g3 || xl reboot g3"
without() { now=$(xl domid g3 2>/dev/null) && [ "$now" != "$domid" ] && [ -z "$(bulkhead status --json | jq '.stubs[] | select(.guest.name == "g3")')" ]; }
within 60 "a guest that is declared no more starts without its device" without
check "it runs" in_guest g3 true
check "it ends" xl destroy g3

# --- a guest that crashed is kept under another name, with its devices
check "declare" sh -c "bulkhead undeclare g4 && bulkhead declare g5 --device $EDU"
pv g5
sed -i 's/^on_crash.*/on_crash = "rename-restart"/' /root/g5.cfg
check "xl create" xl create /root/g5.cfg
within 60 "it has its device" has g5 $EDU
domid=$(xl domid g5)
in_guest g5 '(sleep 1; echo c >/proc/sysrq-trigger) >/dev/null 2>&1 & echo started'
within 90 "it crashes, and its next domain is held, for the last one is there" held g5 "xl destroy $domid"
check "the last one ends" xl destroy "$domid"
check "attach starts the next one" bulkhead attach g5
within 60 "it has the device" has g5 $EDU
[ "$ALL" ] || success

# --- the service was down when the guest came
check "destroy" bulkhead destroy g5
check "declare" sh -c "bulkhead undeclare g5 && bulkhead declare g6 --device $EDU"
launcher=$(launcher_pid)
kill -KILL "$launcher"
within 10 "no service" sh -c "! kill -0 $launcher"
pv g6
check "xl create" xl create /root/g6.cfg
check "it runs" in_guest g6 true
serve
within 90 "it has its device while it runs" has g6 $EDU
equal "starts before the first instruction, others, and with devices before it" "0 1 0" "$(started g6)"
check "its device answers" in_guest g6 "setpci -s 00:00.0 VENDOR_ID | grep 1234"

# --- the declarations cannot be read: no guest is kept from its start
check "destroy" bulkhead destroy g6
check "no directory, but a file" sh -c "mv $FILES /tmp/guests.d && touch $FILES"
pv g7
check "xl create of a guest that nobody has declared" xl create /root/g7.cfg
check "it runs" in_guest g7 true
grep -q "cannot read the directory of declarations" $LOG || failure "no word of the directory"
check "it ends" xl destroy g7
check "the directory is there again" sh -c "rm $FILES && mv /tmp/guests.d $FILES"

# --- a guest that is destroyed while its toolstack still builds it, again and again
pv g6
for pause in 0.1 0.3 0.6 1 1.5 2; do
    xl create /root/g6.cfg >/tmp/create 2>&1 &
    within 20 "it is being built" xl domid g6
    usleep "$(awk -v s=$pause 'BEGIN { print s * 1000000 }')"
    bulkhead destroy g6 >/tmp/check 2>&1 || xl destroy g6
    wait $!
    within 90 "after $pause s: nothing is left of it" sh -c "! xl domid g6 && bulkhead status --json | jq -e '.starts == []' &&
        ! bulkhead status --json | jq -e '.stubs[] | select(.guest.name == \"g6\")'"
done
check "xl create" xl create /root/g6.cfg
within 60 "it has its device" has g6 $EDU
success
