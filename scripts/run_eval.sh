#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The older name of run_standalone_eval.sh.
exec bash "$(dirname "$0")/run_standalone_eval.sh" "$@"
