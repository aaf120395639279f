"""Many reads or writes by one system call, for descriptors that move one frame a call (a TAP): io_uring(7).

`ring` sets one up; `batch`, compiled, fills it and enters the kernel. Nothing here waits or runs in the background: every request
is carried out by the thread that submits it, within the call, as the plain one would be. What is saved is entries into the kernel.
"""
