"""Python imports this when it starts: what a rehearsed program starts sees the stand-in for cuDNN and cuBLAS, too."""

from tests.rehearsal.libraries import install
from tests.rehearsal.null_gpu import Log

replaced = install(Log())  # for as long as it lives
