#!/bin/sh
# A stock guest drives an e1000e through the stub over MSI-X, also after rebinds of its driver and of its frontend.
#: first
#: device e1000e,netdev=n0,addr=5
#: timeout 700
#: xenstored xenstored
#: xenstored oxenstored
. /rig/scenarios/lib.sh
BDF=0000:00:05.0

dmesg -c >/dev/null
guest_config g1
check "bulkhead run" bulkhead run /root/g1.cfg --device $BDF
log=$(stub_log "$(bulkhead status --json | jq -r '.stubs[0].name')")
check "the stub tells of the second hop" wait-log "$log" "second hop connected" 1
check "the stub tells of the export" wait-log "$log" "exporting $BDF .* as 0000:00:00.0" 1
say "entry to InitWait: $(wait-log "$log" "InitWait" 1)"
check "the guest's shell answers" in_guest g1 true
refused "dom0 exports nothing" "No such|not exist|Couldn't|directory" xenstore-ls /local/domain/0/backend/pci

equal "ids in the guest" "0000:00:00.0 8086:10d3" "$(in_guest g1 "lspci -Dn" | awk '{ print $1, $3 }')"
check "e1000e comes up" network_up g1
equal "interrupt mode by status" msi-x "$(bulkhead status --json | jq -r '.stubs[0].devices[0].mode')"
vectors() { in_guest g1 "grep -c pcifront-msi-x /proc/interrupts"; }
equal "MSI-X vectors" 3 "$(vectors)"
equal "pings lost of 20" 0 "$(pings_lost g1 20)"
# The third vector counts link changes.
check "a link change" in_guest g1 "ip link set eth0 down; ip link set eth0 up; sleep 3"
in_guest g1 "grep pcifront-msi-x /proc/interrupts" >/tmp/lines
cat /tmp/lines
equal "vectors that never fired" 0 "$(awk '$2 == 0' /tmp/lines | wc -l)"

for round in 1 2 3 4 5; do
    check "rebind $round" in_guest g1 "cd /sys/bus/pci/drivers/e1000e && echo 0000:00:00.0 >unbind && echo 0000:00:00.0 >bind"
    check "rebind $round: link" network_up g1
    equal "rebind $round: MSI-X vectors" 3 "$(vectors)"
done
equal "pings lost of 20 after the rebinds" 0 "$(pings_lost g1 20)"

# A frontend that starts anew: its state is reset, and its driver comes with another page and another port.
frontend=/local/domain/$(xl domid g1)/device/pci/0
backend=$(xenstore-read "$frontend/backend")
in_state() { xenstore-read "$1/state" | grep -qE "^($2)$"; }
in_service() { in_state "$backend" 4 && in_state "$frontend" 4; }
# Linux probes a device anew whose state was reset from 7.0 on; before, it is told to.
probes_anew() { [ "$(in_guest g1 uname -r | cut -d. -f1)" -ge 7 ]; }
bind_frontend() {
    probes_anew || in_guest g1 "echo pci-0 >/sys/bus/xen/drivers/pcifront/bind"
}
for round in $([ "$ALL" ] && echo 1 2 3 || echo 1); do
    before=$(xenstore-read "$frontend/pci-op-ref" "$frontend/event-channel" | xargs)
    check "frontend $round: unbound" in_guest g1 "echo pci-0 >/sys/bus/xen/drivers/pcifront/unbind"
    within 10 "frontend $round: the stub follows it" in_state "$backend" 6
    check "frontend $round: reset" xenstore-write "$frontend/state" 1
    within 10 "frontend $round: the stub is ready for a new one" in_state "$backend" "3|4"
    check "frontend $round: bound" bind_frontend
    within 20 "frontend $round: in service" in_service
    say "page and port: $before, then $(xenstore-read "$frontend/pci-op-ref" "$frontend/event-channel" | xargs)"
    check "frontend $round: link" network_up g1
    equal "frontend $round: MSI-X vectors" 3 "$(vectors)"
    equal "frontend $round: pings lost of 10" 0 "$(pings_lost g1 10)"
done
# Also where its state is reset in service.
check "reset in service" xenstore-write "$frontend/state" 1
if probes_anew; then
    within 20 "the guest's new frontend is in service" in_service
else
    within 10 "the stub waits for a new frontend" in_state "$backend" 2
    equal "pings lost of 10 meanwhile" 0 "$(pings_lost g1 10)"
    equal "the old one is served" 8086:10d3 "$(in_guest g1 "setpci -s 0000:00:00.0 0.w 2.w" | xargs | tr ' ' :)"
    check "it says that it is connected" xenstore-write "$frontend/state" 4
    within 10 "it is in service again" in_service
    # Its interrupts were turned off, as for a new one.
    check "its driver begins again" in_guest g1 "cd /sys/bus/pci/drivers/e1000e && echo 0000:00:00.0 >unbind && echo 0000:00:00.0 >bind"
fi
check "link after that" network_up g1
equal "pings lost of 10 after that" 0 "$(pings_lost g1 10)"

in_guest g1 dmesg >/tmp/guest-dmesg
equal "complaints in the guest" "" "$(grep -iE 'enable msix get err|not responding|pcifront.*(err|fail)' /tmp/guest-dmesg)"
equal "complaints in the stub" "" "$(grep -E 'WARN|ERROR' "$log")"
equal "complaints in dom0" "" "$(dmesg | grep -iE 'pciback.*(err|fail|warn)|call trace|bug:|nobody cared|DMAR.*fault')"
success
