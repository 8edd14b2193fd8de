# SPDX-License-Identifier: Apache-2.0
"""What every task trains with: the loop, optimizers, checkpoints, devices, logs."""
