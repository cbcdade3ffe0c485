"""The delivery: every rank prepares a request beside its scheduler's thread and reports; one process decides.

The decider counts reports; a rank prepares inputs, hands them over when it is told to, and gives blocks back.
"""
