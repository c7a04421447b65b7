# shellcheck shell=bash
# Sourced by the scripts beside it, or by a user: what Open MPI needs to run several ranks on one
# machine.

# Containers and CI often run as root.
if [[ "$(id -u)" == 0 ]]; then
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
# More ranks than cores, as small machines need.
export OMPI_MCA_rmaps_base_oversubscribe=1
# Reading another process's memory, which containers forbid.
export OMPI_MCA_btl_vader_single_copy_mechanism=none
