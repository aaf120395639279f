"""What lies where in the region that the floor's workers share: the ring (bench/floor/ring.py), ping-pong words, samples."""

from bench.floor.ring import BUFFERS
from hyp.abi.nic import PAGE
from hyp.abi.sizes import FRAME_BUFFER

MAX_WORKERS = 4
MAX_ENTRIES = 1024
MAX_SAMPLES = 1 << 16

WORDS = BUFFERS + -(-MAX_ENTRIES * FRAME_BUFFER // PAGE) * PAGE
SAMPLES = WORDS + PAGE
REGION_BYTES = SAMPLES + 8 * MAX_SAMPLES
