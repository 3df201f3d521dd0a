"""The program that runs libnftables for the daemon, with a clock around each command; for bench/clocks.py.

Must not be imported. The one idea: the real program runs in this process, unchanged.
"""

import nftables

from bench import clocks
from nfportd.kernel import nft_worker

nftables.Nftables.cmd = clocks.clocked_command(nftables.Nftables.cmd)
try:
    nft_worker.main()
finally:
    clocks.write()
