#!/usr/bin/env bash
#SBATCH --job-name=model-budget
#SBATCH --ntasks=8
#SBATCH --cpus-per-task=1
#SBATCH --mem-per-cpu=4G
#SBATCH --time=01:00:00
# One check on the nodes of a SLURM job: copy this file into your project and submit it there, in an environment that has
# your framework and pytest-modelbudget[dask]. `sbatch --wait slurm-check.sh` ends with the exit code of the check. It starts
# a Dask cluster for this job alone, a worker for each task, and so many models are counted at a time.
set -euo pipefail
own="$(mktemp -d "$HOME/.model-budget-XXXXXX")" # where all nodes see it, and nobody else
trap 'kill $(jobs -p) 2> /dev/null || true; rm -rf "$own"' EXIT

# Who may talk to a scheduler may run code as you. Only who has this certificate may, and it lives as long as the job.
openssl req -x509 -newkey rsa:3072 -nodes -days 2 -subj /CN=model-budget \
  -keyout "$own/key.pem" -out "$own/cert.pem" 2> /dev/null
export DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION=true
export DASK_DISTRIBUTED__COMM__TLS__CA_FILE="$own/cert.pem"
for role in SCHEDULER WORKER CLIENT; do
  export "DASK_DISTRIBUTED__COMM__TLS__${role}__CERT=$own/cert.pem" "DASK_DISTRIBUTED__COMM__TLS__${role}__KEY=$own/key.pem"
done
export DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES=0 # a model that kills its worker fails, and is not tried again

dask scheduler --protocol tls --port 0 --no-dashboard --scheduler-file "$own/scheduler.json" &> "$own/scheduler.log" &
scheduler=$!
until [ -s "$own/scheduler.json" ]; do
  kill -0 "$scheduler" || { cat "$own/scheduler.log"; exit 2; }
  sleep 0.2
done
srun dask worker --scheduler-file "$own/scheduler.json" --nthreads 1 --no-dashboard --death-timeout 60 &> "$own/workers.log" &
code=0
modelbudget check --on "$own/scheduler.json" --report html:modelbudget-report/report.html "$@" || code=$?
[ "$code" -lt 2 ] || tail -n 20 "$own/workers.log" # perhaps no worker came, and why
exit "$code"
