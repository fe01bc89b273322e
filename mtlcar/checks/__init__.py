"""What is looked at before any work begins, so that a mistake costs no time: everything at once, in one message.

names    groups, choices and keys that do not exist          with the command, no library needed
kinds    a number where there should be a list, and the like the same
values   what no part would refuse before training           the same
machine  folders, disk, devices, precision                   with the command, and in the job where it runs
parts    what does not fit together, each part built without data   in a sweep with the command, else in the job
"""
