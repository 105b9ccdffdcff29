# cmake --install stages a tree that can be carried to another machine.
