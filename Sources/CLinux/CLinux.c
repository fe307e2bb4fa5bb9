// SwiftPM wants a source file in a C target; everything lives in the header.
#include "CLinux.h"

_Static_assert(sizeof(struct clinux_call) == 80, "the loop in each architecture folder steps by 80 bytes");
_Static_assert(sizeof(struct clinux_clone_args) == 88, "CLONE_ARGS_SIZE_VER2");
_Static_assert(sizeof(struct clinux_pm_scan_arg) == 96, "struct pm_scan_arg");
_Static_assert(sizeof(struct clinux_mm_map) == 104, "struct prctl_mm_map");
_Static_assert(sizeof(struct clinux_siginfo) == 128, "SI_MAX_SIZE");
