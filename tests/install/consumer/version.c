#include <stdio.h>

#include "weightcast/capi/weightcast.h"

int main(void) {
  printf("version %s\n", wc_version());
  return 0;
}
