"""Code that runs inside a cell: the zygote and the trusted boot of one run.

Only the standard library may be imported here, and nothing of the rest of the project except
`sandbox.codec`: the zygote starts by path with an empty environment and has to start fast.
Nothing here ever sees a task: sources, inputs and results travel in file descriptors that only a
run's own process reads.
"""
