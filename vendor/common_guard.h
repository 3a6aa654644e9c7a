// What common_guard.cpp adds to llama-common.
#pragma once

#include <cstdio>

// To the log of ggml, whatever the file.
int lloyal_common_warning(FILE *, const char * format, ...);

// Set for the file of llama-common that writes its warnings to stderr, which has this header before everything else.
#ifdef LLOYAL_CATCH_WARNINGS
#define fprintf lloyal_common_warning
#endif
