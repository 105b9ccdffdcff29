/* The C interface as C11 sees it: what it says to arguments that cannot be used. Needs no MPI. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "weightcast/capi/weightcast.h"

static int failures = 0;

/* A call must return `status`, and its text contain `text`. */
#define EXPECT(status, text, call)                                                                                   \
  do {                                                                                                               \
    const int got = (call);                                                                                          \
    if (got != (status) || strstr(wc_last_error(), text) == NULL) {                                                  \
      fprintf(stderr, "%s:%d: %s: %d \"%s\", expected %d \"%s\"\n", __FILE__, __LINE__, #call, got, wc_last_error(), \
              status, text);                                                                                         \
      ++failures;                                                                                                    \
    }                                                                                                                \
  } while (0)
#define CHECK(condition)                                                        \
  do {                                                                          \
    if (!(condition)) {                                                         \
      fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
      ++failures;                                                               \
    }                                                                           \
  } while (0)

int main(void) {
  wc_trainer* trainer = NULL;
  wc_engine* engine = NULL;
  wc_pin* pin = NULL;
  wc_update update = WC_UPDATE_INIT;
  wc_tensor tensor = WC_TENSOR_INIT;
  wc_options options = WC_OPTIONS_INIT;
  uint64_t version = 0;
  size_t count = 0;
  char digest[33];

  CHECK(strchr(wc_version(), '.') != NULL);
  CHECK(strlen(wc_mpi_library()) > 0);
  CHECK(strncmp(wc_gpu_libraries(), "CUDA ", 5) == 0 && strstr(wc_gpu_libraries(), ", NCCL ") != NULL);
  CHECK(strcmp(wc_last_error(), "") == 0);

  EXPECT(WC_USAGE, "NULL", wc_trainer_create(NULL, &trainer));
  EXPECT(WC_USAGE, "NULL", wc_trainer_create(&options, NULL));
  EXPECT(WC_USAGE, "options.model", wc_trainer_create(&options, &trainer));
  EXPECT(WC_USAGE, "NULL", wc_engine_create(NULL, &engine));
  options.model = "tiny";
  options.size = 8;
  EXPECT(WC_USAGE, "_INIT", wc_engine_create(&options, &engine));
  options.size = sizeof options;
  options.memory = 7;
  EXPECT(WC_USAGE, "memory of kind 7", wc_trainer_create(&options, &trainer));
  options.memory = WC_HOST;
  options.slots = 3;
  EXPECT(WC_USAGE, "slots", wc_engine_create(&options, &engine));
  options.slots = 0;
  options.timeout_s = NAN;
  EXPECT(WC_USAGE, "timeout_s", wc_trainer_create(&options, &trainer));
  options.timeout_s = -1;
  EXPECT(WC_USAGE, "timeout_s", wc_trainer_create(&options, &trainer));
  options.timeout_s = 5;
  options.method = "sideways";
  EXPECT(WC_USAGE, "method", wc_trainer_create(&options, &trainer));
  options.method = "sharded";
  options.delta_limit = 1.5;
  EXPECT(WC_USAGE, "delta_limit", wc_trainer_create(&options, &trainer));
  options.delta_limit = NAN;
  EXPECT(WC_USAGE, "delta_limit", wc_engine_create(&options, &engine));
  options.delta_limit = 0.4;
  EXPECT(WC_CONFIG, "wc_init()", wc_trainer_create(&options, &trainer));
  EXPECT(WC_CONFIG, "wc_init()", wc_engine_create(&options, &engine));
  options.size = offsetof(wc_options, destinations); /* of a program that was compiled before there were any */
  EXPECT(WC_CONFIG, "wc_init()", wc_engine_create(&options, &engine));
  options.size = offsetof(wc_options, destination_count);
  EXPECT(WC_USAGE, "_INIT", wc_engine_create(&options, &engine));
  CHECK(trainer == NULL && engine == NULL);

  EXPECT(WC_USAGE, "handle", wc_publish(NULL, 1, &tensor, 1, &update));
  EXPECT(WC_USAGE, "handle", wc_begin(NULL, 1));
  EXPECT(WC_USAGE, "handle", wc_put(NULL, &tensor));
  EXPECT(WC_USAGE, "handle", wc_commit(NULL, &update));
  EXPECT(WC_USAGE, "handle", wc_abort(NULL));
  EXPECT(WC_USAGE, "handle", wc_receive(NULL, WC_FOREVER, &update));
  EXPECT(WC_USAGE, "handle", wc_receive_into(NULL, WC_FOREVER, &tensor, 1, &update));
  EXPECT(WC_USAGE, "handle", wc_engine_version(NULL, &version));
  EXPECT(WC_USAGE, "handle", wc_pin_served(NULL, &pin));
  EXPECT(WC_USAGE, "pin", wc_pin_version(NULL, &version));
  EXPECT(WC_USAGE, "handle", wc_engine_tensor_count(NULL, &count));
  EXPECT(WC_USAGE, "handle", wc_engine_tensor(NULL, NULL, 0, &tensor));
  EXPECT(WC_USAGE, "handle", wc_engine_digest(NULL, digest));
  EXPECT(WC_USAGE, "handle", wc_scrub(NULL));
  CHECK(wc_trainer_lost(NULL) == 0 && wc_engine_lost(NULL) == 0);
  CHECK(wc_engine_destroy(NULL) == WC_OK);
  wc_trainer_destroy(NULL);
  wc_unpin(NULL);

  if (failures == 0) puts("the C interface refuses what it cannot use");
  return failures == 0 ? 0 : 1;
}
