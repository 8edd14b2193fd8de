# SPDX-License-Identifier: Apache-2.0
"""The networks of `step.py` in torch, written from the same papers, as a torch user would write them.

Modules have the names by which `mindvideo convert` knows the original programs' weights, so that one set of weights
serves both sides.
"""
