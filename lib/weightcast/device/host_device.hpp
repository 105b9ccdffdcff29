#pragma once

/// For functions that host and device code share.
#ifdef __CUDACC__
#define WEIGHTCAST_HOST_DEVICE __host__ __device__
#else
#define WEIGHTCAST_HOST_DEVICE
#endif
