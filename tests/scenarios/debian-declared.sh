#!/bin/sh
# Declared guests have their devices on a Debian host: after a boot without a hand, by xendomains and by libvirt, over reboots, a service that stands still, and an upgrade.
#: host debian
#: all
#: suite trixie
#: device e1000e,netdev=n0,addr=5
#: device edu,addr=6
#: timeout 900
. /rig/scenarios/lib.sh
CARD=0000:00:05.0 EDU=0000:00:06.0
VIRSH="virsh --connect xen:///system"

if [ "$BOOT" = 1 ]; then
    install_bulkhead
    guest_config web 'passthrough = "enabled"'
    # --- three commands on a host with the package, and whoever starts the guest does no more
    check "declare" bulkhead declare web --device $CARD
    check "xl starts it at boot" cp /root/web.cfg /etc/xen/auto/web.cfg
    check "declare one for libvirt" bulkhead declare lv --device $EDU
    reboot_host
fi

# --- the host has booted: nobody has done anything
within 60 "systemctl is-system-running" systemctl --quiet is-system-running
equal "units that failed" "" "$(systemctl list-units --failed --plain --no-legend)"
within 60 "the guest that xendomains has started has its card" has web $CARD
check "the card comes up" network_up web
equal "interrupts by status" "msi-x 3" "$(mode_of $CARD)"
equal "starts before the first instruction" 1 "$(journalctl -u bulkhead GUEST=web -o cat | grep -c 'paused before its first instruction')"

# --- a service that stands still, and an upgrade, under traffic
in_guest web 'ping -i 0.2 -W 2 10.0.2.2 >/tmp/pings 2>&1 & echo started' >/dev/null
serving=$(service_pid)
kill -STOP "$(launcher_pid)"
read -r began _ </proc/uptime
replaced() { now=$(service_pid) && [ -n "$now" ] && [ "$now" != "$serving" ] && has web $CARD; }
within 90 "a launcher that stands still is replaced" replaced
read -r ended _ </proc/uptime
say "replaced after $(awk -v a="$began" -v b="$ended" 'BEGIN { print b - a }') s"
serving=$(service_pid)
check "apt install --reinstall" env DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --reinstall /rig/bulkhead_*.deb
within 60 "the service of the new package serves" replaced
in_guest web 'kill -INT $(pidof ping); sleep 1; tail -n 3 /tmp/pings' >/tmp/pings
cat /tmp/pings
equal "pings lost meanwhile" "0%" "$(grep -o '[0-9]*%' /tmp/pings)"
check "the driver binds again by the new service" in_guest web "at=0000:00:00.0; $REBIND; $NETWORK_UP"
refused "the package stays while a guest has devices" "web" apt-get -qq remove --yes bulkhead
check "destroy" bulkhead destroy web

# --- libvirt, whose unit conflicts with that of Xen's script
check "xendomains off" systemctl --quiet disable --now xendomains
cat >/root/lv.xml <<END
<domain type='xen'><name>lv</name><memory unit='MiB'>256</memory><vcpu>1</vcpu>
<os><type machine='xenpv'>linux</type><kernel>/rig/guest/vmlinux</kernel><initrd>/rig/guest/initrd</initrd>
<cmdline>console=hvc0</cmdline></os>
<features><xen><e820_host state='on'/><passthrough state='on'/></xen></features>
<on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>restart</on_crash>
<devices><console type='pty'/></devices></domain>
END
check "virsh define" $VIRSH define /root/lv.xml
check "virsh start" $VIRSH start lv
within 60 "it has its device" has lv $EDU
domid=$(xl domid lv)
check "virsh reboot" $VIRSH reboot lv
within 90 "it has its device again" is_new lv "$domid" $EDU
domid=$(xl domid lv)
in_guest lv '(sleep 1; reboot -f) >/dev/null 2>&1 & echo started' >/dev/null
within 90 "it has its device after a reboot from inside" is_new lv "$domid" $EDU
check "virsh destroy" $VIRSH destroy lv
within 30 "its device is free" sh -c "bulkhead status --json | jq -e '.stubs == []'"
domid=
check "virsh start again" $VIRSH start lv
within 60 "it has its device" has lv $EDU
equal "starts before the first instruction" 4 "$(journalctl -u bulkhead GUEST=lv -o cat | grep -c 'paused before its first instruction')"
check "virsh destroy" $VIRSH destroy lv
power_off_within 60
success
