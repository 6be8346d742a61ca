"""Images per second of `foldtrain tokenize` from S3 to S3, against the encoder alone on the same cores.

    python benchmarks/tokenize.py [--json FILE] [--kind imagefolder|titok|vqgan|maskgit-vqgan] [--images 480]

The work is in tokenize_pipeline.py. A script's folder comes first where Python looks for modules, so this file hides
the standard library's `tokenize` from every benchmark here; imported under that name, it hands out the one that was
meant.
"""

import sys

if __name__ == "tokenize":
    import importlib.util
    import os
    import sysconfig

    path = os.path.join(sysconfig.get_path("stdlib"), "tokenize.py")  # noqa: PTH118 - pathlib imports tokenize
    spec = importlib.util.spec_from_file_location(__name__, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[__name__] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[__name__])
elif __name__ == "__main__":
    from tokenize_pipeline import main

    main()
