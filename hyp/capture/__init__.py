"""Capture files, as tcpdump and Wireshark read and write them: pcap and pcapng.

Code of our own, since the formats are small and frozen and no library has what is asked for here: memory that does not grow with
the file, a file that is cut short used up to the cut, a place in the file for all that is refused, and a writer whose file is sound
whenever the disk becomes full.

    format.py   the numbers of both formats
    read.py     frames of a file, one after the other
    pcapng.py   what the reader makes of pcapng's blocks
    write.py    pcapng
    ring.py     what compiled loops record,
    recorder.py and the thread that writes it to a file
"""
