#!/bin/bash
# slurm.sh DIR COMMAND...: a real SLURM controller with four nodes for as long as COMMAND runs.
#
# DIR is a new folder, given as an absolute path. Each node has a network of its own, and a host name, n1 to n4; COMMAND
# runs on the host of the controller. All of it lives in a pid namespace, so that nothing is left when COMMAND ends. Needs
# root, Debian's packages slurmctld, slurmd, slurm-client and munge, ip, unshare and nsenter.
set -eu
if [ "${INSIDE:-}" != 1 ]; then
  exec env INSIDE=1 unshare --fork --kill-child --pid --mount-proc --mount --net --uts -- bash "$0" "$@"
fi
dir=$1
shift
mkdir -p "$dir"/{state,spool/n{1..4},log,run}
chmod 755 "$dir"

# The network: a bridge on the head, and a pair of virtual cards to each node. None of it reaches the outside.
mkdir -p /run/netns
mount -t tmpfs none /run/netns
hostname head
ip link set lo up
ip link add br0 type bridge
ip addr add 10.77.0.1/24 dev br0
ip link set br0 up
printf '127.0.0.1 localhost\n10.77.0.1 head\n10.77.0.11 n1\n10.77.0.12 n2\n10.77.0.13 n3\n10.77.0.14 n4\n' >"$dir/hosts"
mount --bind "$dir/hosts" /etc/hosts
for i in 1 2 3 4; do
  ip netns add n$i
  ip link add h$i type veth peer name eth0 netns n$i
  ip link set h$i master br0 up
  ip -n n$i link set lo up
  ip -n n$i addr add 10.77.0.1$i/24 dev eth0
  ip -n n$i link set eth0 up
done

cat >"$dir/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=head
SlurmUser=root
AuthType=auth/munge
# cred_expire is also how long a requeued job waits; 120 s by default
AuthInfo=socket=$dir/run/munge.socket,cred_expire=5
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$dir/run/slurmctld.pid
SlurmdPidFile=$dir/run/slurmd.%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
KillWait=20
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
MinJobAge=3600
PropagateResourceLimits=NONE
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n1 CPUs=2 RealMemory=4000
NodeName=n2 CPUs=4 RealMemory=4000
NodeName=n[3-4] CPUs=1 RealMemory=4000
PartitionName=debug Nodes=n[1-4] Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes=n[1-4] MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
CONF
printf 'CgroupPlugin=cgroup/v1\n' >"$dir/cgroup.conf" # slurmd then starts where /sys/fs/cgroup is not mounted
head -c 1024 /dev/urandom >"$dir/run/munge.key"
chmod 600 "$dir/run/munge.key"
export SLURM_CONF="$dir/slurm.conf"
munged --key-file="$dir/run/munge.key" --socket="$dir/run/munge.socket" --pid-file="$dir/run/munged.pid" \
  --log-file="$dir/log/munged.log" --seed-file="$dir/run/munged.seed"
slurmctld
for i in 1 2 3 4; do # not "ip netns exec", which mounts another /sys
  nsenter --net=/run/netns/n$i unshare --uts -- bash -c "hostname n$i; exec slurmd"
done
for _ in $(seq 300); do
  [ "$(sinfo -h -t idle -o %D 2>/dev/null)" = 4 ] && break
  sleep 0.1
done
[ "$(sinfo -h -t idle -o %D)" = 4 ] || {
  echo "slurm did not come up"
  tail -n 30 "$dir"/log/*
  exit 1
}
echo "slurm is up"
rc=0
"$@" || rc=$?
exit $rc # this shell is the first process of its namespace: the kernel ends every daemon and job with it
