"""Why a model answered as it did: which parts of an input the answer hangs on."""
