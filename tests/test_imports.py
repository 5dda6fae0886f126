from __future__ import annotations

import subprocess
import sys


def test_what_needs_no_tensors_imports_no_torch() -> None:
    """Importing torch costs a second, which a remote engine or a look at a trace need not pay."""
    modules = "apr, apr.config, apr.trace, apr.runtime, apr.testing, apr.methods, apr.dialects.tags"
    code = f"import {modules}, apr.countdown.problem, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
