"""What lies where in the region that the floor's workers share: the ring (bench/floor/ring.py), ping-pong words, samples."""

from bench.floor.ring import BUFFERS, STRIDE
from hyp.abi.nic import PAGE

MAX_WORKERS = 4
MAX_ENTRIES = 1024
MAX_SAMPLES = 1 << 16

WORDS = BUFFERS + -(-MAX_ENTRIES * STRIDE // PAGE) * PAGE
SAMPLES = WORDS + PAGE
REGION_BYTES = SAMPLES + 8 * MAX_SAMPLES
