#!/bin/sh
# A network card passed through to a Linux PV guest by dom0's own xen-pciback. Run it with
#   cargo rig run --device e1000e,netdev=n0,addr=5 --script images/examples/passthrough.sh
set -e
device=0000:00:05.0

echo "== Xen"
xl info | grep -E '^(release|xen_version|total_memory)'

echo "== the device goes to xen-pciback"
xl pci-assignable-add "$device"
xl pci-assignable-list

echo "== a guest gets it"
guest-create guest "pci = [ \"$device\" ]" 'e820_host = 1'
wait-log /var/log/xen/guest-guest.log GUEST-READY 60

echo "== the guest drives it"
guest-run guest 30 'lspci -n; modprobe e1000e && ip link set eth0 up && ip address add 10.0.2.15/24 dev eth0'
guest-run guest 30 'ping -c 3 10.0.2.2; grep eth0 /proc/interrupts'

echo "== exit codes come through"
guest-run guest 10 'exit 7' || [ $? -eq 7 ]
xl destroy guest
