"""`launch.py exec`: a program in a guest, as if the caller had started it.

The program is this process's descendant, not the guest's: a child enters the guest's namespaces as nsenter(1) does
(supervisor.py) and starts it. So the kernel gives it what any program inherits, and nothing of that travels: standard
streams and further descriptors, folder, arguments and environment of whatever length execve(2) takes, umask, limits, niceness, CPU
affinity, OOM score, signal mask, ignored signals, session and controlling terminal. User and groups are what the guest's user
namespace makes of the caller's. Once it runs, nobody but the program holds the caller's streams.

The terminal, when there is one, is the caller's own, not a second one behind it; size, modes, Ctrl-C, SIGWINCH and an interactive
shell's job control are the kernel's. Of a confined guest's program it is a second one, in a session without the caller's
(relay.py). The program has a process group of its own. This process stands for it in the caller's job:

* If standard input and output are the terminal and the caller's job is in the foreground, the program's group gets the terminal. In
  any other case it gets it when it first wants it (the kernel then stops it by SIGTTIN or SIGTTOU) while the caller's job is in the
  foreground; a pipeline's other programs have it until then. In the background nothing is read: the job stops, as any other does.
* Signals to this process go to the program's group.
* When the program stops (Ctrl-Z), so does this process, by the same signal, which is what the caller's shell looks at; when this
  process is continued (fg, bg), so is the program.
* When the program has ended, this process's group has the terminal again, with the modes it had if a signal was the end.

The exit status is the program's; 128 + n if signal n ended it; 127 if there is no such program and 126 if it cannot be executed,
with a message; 1 if the guest is not to be had, or went while the program ran. If this process is killed, so is the program's
group.
"""
