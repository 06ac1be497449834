#!/usr/bin/env bash
# A Slurm of one machine, for tests: controller, node daemon, the partitions "cpu" and "gpu", GPUs that are only counted.
# Root, Debian's or Ubuntu's packages, no systemd, no cgroups, nothing that listens beyond the loopback interface.
#
#   tools/slurm_one_node.sh check     fails, saying why, where it may not run
#   tools/slurm_one_node.sh install   slurmctld slurmd slurm-client munge, by apt-get, those that are missing
#   tools/slurm_one_node.sh up        start; waits until the node is idle
#   tools/slurm_one_node.sh status    partitions, node and queue
#   tools/slurm_one_node.sh restart-node  start the node's daemon again after it was killed; waits until it takes jobs
#   tools/slurm_one_node.sh down      cancel the jobs, stop the daemons, remove the links in /etc/slurm
#
# Environment: SLURM_BASE (folder for all of its files, default /tmp/slideloom-slurm), SLURM_CPUS (2), SLURM_MEM_MB (8000),
# SLURM_GPUS (2), SLURM_GPU_MODEL (fake), SLURM_JOB_AGE (3600: seconds that squeue and scontrol remember a finished job).
# Finished jobs stand in $SLURM_BASE/log/jobs.txt, a line each.
set -euo pipefail

base="${SLURM_BASE:-/tmp/slideloom-slurm}"
cpus="${SLURM_CPUS:-2}"
mem_mb="${SLURM_MEM_MB:-8000}"
gpus="${SLURM_GPUS:-2}"
model="${SLURM_GPU_MODEL:-fake}"
job_age="${SLURM_JOB_AGE:-3600}"
packages=(slurmctld slurmd slurm-client munge)
files=(slurm.conf gres.conf cgroup.conf)
node="$(hostname -s)"

fail() {
  echo "slurm_one_node.sh: $*" >&2
  exit 1
}

installed() {
  command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v munged >/dev/null
}

# Why it cannot run here; nothing when it can.
obstacle() {
  [ "$(id -u)" = 0 ] || {
    echo "it needs root"
    return
  }
  if ! installed; then
    command -v apt-get >/dev/null || {
      echo "Slurm is not installed and there is no apt-get"
      return
    }
  fi
  for file in "${files[@]}"; do
    local there="/etc/slurm/$file"
    if [ -e "$there" ] && [ "$(readlink "$there")" != "$base/etc/$file" ]; then
      echo "$there belongs to another Slurm"
      return
    fi
  done
}

install_packages() {
  local missing=()
  for package in "${packages[@]}"; do
    dpkg-query --show --showformat '${Status}\n' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  if [ "${#missing[@]}" = 0 ]; then
    echo "installed already: ${packages[*]}"
    return
  fi
  echo "installing: ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get install --yes --quiet --no-install-recommends "${missing[@]}" >/dev/null 2>&1 || {
    apt-get update --quiet >/dev/null
    apt-get install --yes --quiet --no-install-recommends "${missing[@]}" >/dev/null
  }
}

# Ask until the answer is yes: seconds, then a command.
until_true() {
  local tries=$(($1 * 5))
  shift
  for ((i = 0; i < tries; i++)); do
    "$@" >/dev/null 2>&1 && return
    sleep 0.2
  done
  tail -n 20 "$base"/log/*.log >&2 || true
  fail "gave up waiting for: $*"
}

idle() { sinfo --noheader --format %t | grep -qx idle; }

write_config() {
  # slurmd refuses GPUs that are a mere count: each needs a character device. These are other names of /dev/null.
  local i
  : >"$base/etc/gres.conf"
  for ((i = 0; i < gpus; i++)); do
    [ -c "$base/dev/gpu$i" ] || mknod "$base/dev/gpu$i" c 1 3
    echo "Name=gpu Type=$model File=$base/dev/gpu$i" >>"$base/etc/gres.conf"
  done
  echo "CgroupAutomount=no" >"$base/etc/cgroup.conf"
  cat >"$base/etc/slurm.conf" <<CONF
ClusterName=slideloom
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=16917
SlurmdPort=16918
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$base/run/munge.sock
CredType=cred/munge
StateSaveLocation=$base/state
SlurmdSpoolDir=$base/spool
SlurmctldPidFile=$base/run/slurmctld.pid
SlurmdPidFile=$base/run/slurmd.pid
SlurmctldLogFile=$base/log/slurmctld.log
SlurmdLogFile=$base/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=5
ReturnToService=2
KillWait=5
BatchStartTimeout=2
MinJobAge=$job_age
GresTypes=gpu
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$base/log/jobs.txt
NodeName=$node NodeAddr=127.0.0.1 CPUs=$cpus CoresPerSocket=$cpus RealMemory=$mem_mb Gres=gpu:$model:$gpus
PartitionName=cpu Nodes=$node Default=YES MaxTime=2-00:00:00 DefMemPerCPU=500
PartitionName=gpu Nodes=$node Default=NO MaxTime=2-00:00:00 DefMemPerCPU=500
CONF
  # Jobs start srun without SLURM_CONF, so the usual place must lead here.
  mkdir -p /etc/slurm
  local file
  for file in "${files[@]}"; do ln -sfn "$base/etc/$file" "/etc/slurm/$file"; done
}

up() {
  installed || fail "Slurm is not installed; '$0 install' installs it"
  down
  mkdir -p "$base"/{etc,run,log,state,spool,dev}
  chmod 755 "$base" "$base"/{etc,run,log}
  touch "$base/log/jobs.txt"
  (umask 077 && [ -s "$base/etc/munge.key" ] || head -c 128 /dev/urandom >"$base/etc/munge.key")
  chmod 600 "$base/etc/munge.key"
  write_config
  munged --force --key-file="$base/etc/munge.key" --socket="$base/run/munge.sock" --pid-file="$base/run/munged.pid" \
    --log-file="$base/log/munged.log" --seed-file="$base/run/munged.seed"
  slurmctld -c
  slurmd
  until_true 30 scontrol ping
  until_true 30 idle
  echo "Slurm is up: $cpus cores, $gpus GPUs, files in $base"
}

# A node that came back knows its jobs, or tells the controller that they are gone.
restart_node() {
  alive slurmctld || fail "no controller of ours runs; '$0 up' starts one"
  alive slurmd && fail "the node's daemon runs"
  slurmd
  until_true 60 takes_jobs
}

takes_jobs() { alive slurmd && sinfo --noheader --format %t | grep -qxE 'idle|mix|alloc'; }

# Whether a daemon of ours runs: the process that its file names, and not one that has taken its number since.
alive() {
  [ -s "$base/run/$1.pid" ] && [ "$(cat "/proc/$(cat "$base/run/$1.pid")/comm" 2>/dev/null)" = "$1" ]
}

stop() {
  local file="$base/run/$1.pid" pid
  if alive "$1"; then
    pid="$(cat "$file")"
    kill "$pid" 2>/dev/null || true
    for ((i = 0; i < 50; i++)); do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true
  fi
  rm -f "$file"
}

down() {
  if alive slurmctld; then
    timeout 10 scancel --user "$(id -un)" >/dev/null 2>&1 || true
    timeout 20 bash -c 'while [ -n "$(squeue --noheader)" ]; do sleep 0.5; done' >/dev/null 2>&1 || true
  fi
  stop slurmd
  stop slurmctld
  stop munged
  local file
  for file in "${files[@]}"; do
    [ "$(readlink "/etc/slurm/$file")" != "$base/etc/$file" ] || rm -f "/etc/slurm/$file"
  done
}

why="$(obstacle)"
[ -z "$why" ] || fail "$why"
case "${1:-}" in
  check) ;;
  install) install_packages ;;
  up) up ;;
  down) down ;;
  restart-node) restart_node ;;
  status) sinfo && squeue --states=all ;;
  *) fail "one of: check, install, up, status, restart-node, down" ;;
esac
