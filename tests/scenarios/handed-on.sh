#!/bin/sh
# No device is handed on in doubt: what a guest may still have mapped, what dom0 has found anew, and disks in use by any way.
#: suite trixie
#: device e1000e,netdev=n0,addr=5
#: device nvme-subsys,id=subsystem
#: device nvme,id=nvme0,serial=one,subsys=subsystem,addr=6
#: device nvme-ns,drive=d0,bus=nvme0,nsid=1
#: device e1000,netdev=n1,addr=7
#: device nvme,serial=two,drive=d1,addr=8
#: device e1000,netdev=n2,addr=9
#: timeout 900
. /rig/scenarios/lib.sh
CARD=0000:00:05.0 HEADED=0000:00:06.0 PLAIN=0000:00:07.0 DISK=0000:00:08.0 AGAIN=0000:00:09.0
driver() { link=$(readlink "/sys/bus/pci/devices/$1/driver") && echo "${link##*/}" || echo none; }
command_of() { setpci -s "$1" COMMAND; }

modprobe -a e1000e e1000 nvme
within 10 "dom0 has its disks" sh -c "ls /sys/class/block | grep -q nvme1n1"

# --- a disk is in use if the kernel says so
check "a disk that nothing uses" bulkhead check $HEADED $DISK
check "swap on a namespace of a subsystem, which lies beside its controller" sh -c "mkswap /dev/nvme0n1 && swapon /dev/nvme0n1"
refused "it is the controller's" "/dev/nvme0n1 is swapped to: .swapoff" bulkhead check $HEADED
refused "nor is it seized" "/dev/nvme0n1 is swapped to" bulkhead seize $HEADED
equal "its driver is untouched" nvme "$(driver $HEADED)"
# As with whatever has no table, or one in another namespace.
refused "without the table the kernel says that it is in use" "its kernel has /dev/nvme0n1 in use, and no table says" \
    unshare -m sh -c "mount --bind /dev/null /proc/swaps && bulkhead check $HEADED"
check "swapoff" swapoff /dev/nvme0n1
check "free again" bulkhead check $HEADED
mkdir -p /etc/xen/scripts
cat >/etc/xen/scripts/block <<'END'
#!/bin/sh
[ "$1" = add ] && xenstore-write "$XENBUS_PATH/hotplug-status" connected
exit 0
END
chmod +x /etc/xen/scripts/block
modprobe xen-blkback
guest_config g3 'disk = ["phy:/dev/nvme1n1,xvda,w"]'
check "a guest has the other disk from dom0's blkback" xl create -q /root/g3.cfg
refused "so it is in use" "/dev/nvme1n1 is a disk of domain $(xl domid g3)" bulkhead check $DISK
check "xl destroy" xl destroy g3
within 10 "free again" bulkhead check $DISK

# --- a guest that lives keeps the mappings that it has
guest_config g1
guest_config g2
check "bulkhead run" bulkhead run /root/g1.cfg --device $CARD --device $PLAIN --device $AGAIN
check "detach" bulkhead detach $CARD
cp /tmp/check /tmp/said
cat /tmp/said
check "it says that the guest may still have it mapped" grep "$CARD stays held: guest g1 runs and may still have its memory mapped" /tmp/said
equal "it is held" pciback "$(driver $CARD)"
check "status says for whom" sh -c "bulkhead status | grep 'held: $CARD, which guest g1 had'"
refused "not for another guest" "guest g1, which had $CARD" bulkhead run /root/g2.cfg --device $CARD
refused "nor for dom0" "release --trusted-guest $CARD" bulkhead release $CARD
check "the same guest can have it again" bulkhead attach g1 --device $CARD
check "a guest that is trusted" bulkhead detach --trusted-guest $CARD
equal "dom0's driver has it" e1000e "$(driver $CARD)"
check "attach" bulkhead attach g1 --device $CARD
check "detach" bulkhead detach $CARD
check "trusted afterwards" bulkhead release --trusted-guest $CARD
equal "dom0's driver has it" e1000e "$(driver $CARD)"
check "attach" bulkhead attach g1 --device $CARD
check "detach" bulkhead detach $CARD

# --- devices that dom0 has removed and found again are dom0's, whoever holds them now
for bdf in $PLAIN $AGAIN; do
    check "dom0 removes $bdf under the guest" sh -c "echo 1 >/sys/bus/pci/devices/$bdf/remove"
    within 10 "the service says so" grep "$bdf: dom0 removed it while guest g1 has it" /var/log/bulkhead/serve.log
done
# xen-pciback takes again what it once held, unless it is told otherwise.
check "xen-pciback forgets the one" sh -c "echo $PLAIN >/sys/bus/pci/drivers/pciback/remove_slot"
check "dom0 finds both again" sh -c "echo 1 >/sys/bus/pci/rescan"
within 10 "e1000 has the one" sh -c "readlink /sys/bus/pci/devices/$PLAIN/driver | grep 'e1000$'"
equal "xen-pciback has the other" pciback "$(driver $AGAIN)"
card=$(ls /sys/bus/pci/devices/$PLAIN/net)
ip link set "$card" up
before=$(command_of $PLAIN)
check "bulkhead destroy" bulkhead destroy g1
cat /tmp/check
check "the service leaves it alone" grep "$PLAIN was left alone.*driver e1000 has it now" /var/log/bulkhead/serve.log
check "the other is stopped" grep -E "$AGAIN was stopped, (without a reset|reset by [A-Z]+): dom0 removed it" /var/log/bulkhead/serve.log
equal "and given back" e1000 "$(driver $AGAIN)"
equal "its configuration is untouched" "$before" "$(command_of $PLAIN)"
equal "its driver has it" e1000 "$(driver $PLAIN)"
check "its interface is up" sh -c "ip link show $card | grep -q ',UP'"
equal "what had been detached is dom0's, the guest being dead" e1000e "$(driver $CARD)"
check "nothing is held" sh -c "bulkhead status --json | jq -e '.held == [] and .mapped == [] and .quarantined == [] and .stubs == []'"
ip link set "$card" down
success
