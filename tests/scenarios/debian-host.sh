#!/bin/sh
# The service is a good member of a Debian host: it starts at boot, its stop leaves guests alone, reboot and power-off are clean.
#: host debian
#: all
#: suite trixie
#: device e1000e,netdev=n0,addr=5
#: timeout 480
. /rig/scenarios/lib.sh

# up WHAT: systemd has reached its target, and no unit has failed.
up() {
    equal "$1: the first process" systemd "$(cat /proc/1/comm)"
    within 60 "$1: systemctl is-system-running" systemctl --quiet is-system-running
    equal "$1: units that failed" "" "$(systemctl list-units --failed --plain --no-legend)"
    read -r now _ </proc/uptime
    say "$1: up after $now s"
}

if [ "$BOOT" = 1 ]; then
    up "first boot"
    # libvirtd's unit conflicts with the one of Xen's script, which would end all guests when libvirtd starts.
    check "libvirt in place of Xen's script" systemctl --quiet --no-reload disable --now xendomains
    install_bulkhead
    equal "the service" active "$(systemctl is-active bulkhead)"

    guest_config g
    check "bulkhead run" bulkhead run /root/g.cfg --device 0000:00:05.0
    check "the guest's card comes up" network_up g
    equal "pings lost" 0 "$(pings_lost g 10)"
    check "virsh list" virsh --connect xen:///system list
    grep -q Domain-0 /tmp/check || failure "virsh does not know Domain-0: $(cat /tmp/check)"
    equal "pings lost with libvirtd" 0 "$(pings_lost g 10)"

    check "systemctl stop bulkhead" systemctl stop bulkhead
    equal "the service after its stop" inactive "$(systemctl is-active bulkhead)"
    equal "processes of the service after its stop" "" "$(service_pid)$(spare_pid)$(launcher_pid)"
    equal "pings lost without the service" 0 "$(pings_lost g 10)"
    check "systemctl start bulkhead" systemctl start bulkhead
    equal "guests with stubs after the restart" g "$(bulkhead status --json | jq -r '.stubs[].guest.name')"
    equal "pings lost with the service" 0 "$(pings_lost g 10)"
    check "bulkhead destroy" bulkhead destroy g

    date +%s >/root/went-down
    reboot_host
fi

up "second boot"
equal "complaints of the shutdown" "" "$(shutdown_complaints)"
ended=$(journalctl --no-pager --boot=-1 --output=short-unix --lines=1 | cut -d . -f 1)
seconds=$((ended - $(cat /root/went-down)))
say "the shutdown took $seconds s"
check "it took less than a minute" [ "$seconds" -lt 60 ]
equal "the service, which nobody started" active "$(systemctl is-active bulkhead)"
check "bulkhead status" bulkhead status
power_off_within 60
success
