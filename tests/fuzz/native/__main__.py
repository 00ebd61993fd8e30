"""Feed the engine's packet parser with what libFuzzer thinks of; .ci/fuzz-native builds it and runs this.

python -m tests.fuzz.native CORPUS [libFuzzer's options]

It begins with the inputs of seeds.py and those of found.hex: hexadecimal, a line an input that it once thought of and
that reaches what no other does.
"""

from __future__ import annotations

import importlib
import os
import socket
import sys
from pathlib import Path

from .seeds import seeds


def main() -> None:
    """Entry point."""
    fuzz_engine = importlib.import_module("tun.fuzz_engine")
    corpus, sink, null = Path(sys.argv[1]), socket.socket(type=socket.SOCK_DGRAM), os.open(os.devnull, os.O_RDWR)
    found = (Path(__file__).parent / "found.hex").read_text().split()
    for name, data in [*seeds().items(), *((f"found-{n}", bytes.fromhex(line)) for n, line in enumerate(found))]:
        (corpus / name).write_bytes(data)
    engine = fuzz_engine.open_engine(null, [sink.fileno()])
    for data in seeds().values():
        fuzz_engine.feed(data)
    drops = {name: count for name, count in engine.drops().items() if count}
    sys.stderr.write(f"the seeds alone: delivered and sent {engine.stats(1)[:4]}, dropped {drops}\n")
    if engine.stats(1).rx_packets < len(seeds()) // 2 or engine.stats(1).tx_packets < len(seeds()) // 2:
        sys.exit("the seeds do not get through the parser any more: mend tests/fuzz/native/seeds.py")
    fuzz_engine.run(["fuzz", str(corpus), *sys.argv[2:]])


if __name__ == "__main__":
    main()
