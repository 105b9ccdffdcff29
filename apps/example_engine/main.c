/* An engine in C: joins the update group of whatever trainer is rank 0, serves every version that it publishes until it
 * leaves, and computes the digest of each once more from what all ranks of the engine hold.
 *
 *   mpirun -n 1 python3 apps/examples/torch_trainer.py demo-model : -n 3 weightcast-example-engine demo-model
 */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "weightcast/capi/weightcast.h"

/* Says why, and ends all ranks: the others wait for this one. */
static void require(int status) {
  if (status == WC_OK) return;
  fprintf(stderr, "weightcast-example-engine: %s\n", wc_last_error());
  MPI_Abort(MPI_COMM_WORLD, status);
}

/* The clock that all processes of a host have in common. */
static double now_s(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* What an engine would sample with: here, the engine tensors of one version are looked at. */
static void use_weights(wc_engine* engine, int talkative) {
  wc_pin* pin = NULL;
  size_t count = 0;
  uint64_t version = 0;
  wc_tensor first = WC_TENSOR_INIT;
  require(wc_pin_served(engine, &pin)); /* from here on nobody overwrites it */
  require(wc_pin_version(pin, &version));
  require(wc_engine_tensor_count(engine, &count));
  require(wc_engine_tensor(engine, pin, 0, &first));
  if (talkative) {
    printf("engine: version %llu, %zu engine tensors, %s [%llu, %llu] at %p\n", (unsigned long long)version, count,
           first.name, (unsigned long long)first.shape[0], (unsigned long long)first.shape[1], first.data);
  }
  wc_unpin(pin);
}

int main(int argc, char** argv) {
  wc_engine* engine = NULL;
  wc_options options = WC_OPTIONS_INIT;
  if (argc < 2 || argc > 3 || strcmp(argv[1], "--help") == 0) {
    fputs(
        "usage: weightcast-example-engine MODEL [GPU]\n"
        "MODEL is a config.json, its folder or a named shape; GPU a CUDA ordinal, without it weights are on the host.\n"
        "Runs under mpirun beside a trainer, which is rank 0; it ends when the trainer does.\n",
        stderr);
    return argc == 2 ? 0 : WC_USAGE;
  }
  options.model = argv[1];
  options.delta_limit = 0.4; /* as the trainers beside it have it */
  if (argc == 3) {
    options.memory = WC_CUDA;
    options.device = atoi(argv[2]);
  }
  require(wc_init());
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  require(wc_engine_create(&options, &engine));
  for (;;) {
    wc_update update = WC_UPDATE_INIT;
    char digest[33];
    require(wc_receive(engine, WC_FOREVER, &update)); /* a kinder engine would go on after WC_MISMATCH and its like */
    if (update.closed) break;
    const double served = now_s();
    use_weights(engine, rank == 1);
    require(wc_engine_digest(engine, digest));
    if (strcmp(digest, update.digest) != 0) {
      fprintf(stderr, "rank %d: version %llu has digest %s, not %s\n", rank, (unsigned long long)update.version, digest,
              update.digest);
      MPI_Abort(MPI_COMM_WORLD, WC_MISMATCH);
    }
    if (rank == 1) {
      printf("engine: version %llu (%s) served in %.1f ms, verified: %s\n", (unsigned long long)update.version,
             update.payload == WC_DELTA ? "delta" : "dense",
             1e3 * (update.prepare_s + update.stage_s + update.verify_s + update.vote_s + update.commit_s), digest);
      fflush(stdout);
      /* For the trainer's table: when it was served. */
      MPI_Send(&served, 1, MPI_DOUBLE, 0, 1, MPI_COMM_WORLD);
    }
  }
  require(wc_engine_destroy(engine));
  require(wc_finalize());
  return 0;
}
