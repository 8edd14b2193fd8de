# SPDX-License-Identifier: Apache-2.0
"""What training minimises: one file per family."""
