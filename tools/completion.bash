# Completion of weightcast for bash: commands, options and files, as `weightcast --help` lists them.
_weightcast() {
  local word=${COMP_WORDS[COMP_CWORD]} program=${COMP_WORDS[0]} command=${COMP_WORDS[1]}
  local words
  if ((COMP_CWORD == 1)); then
    words="$("$program" --help 2>/dev/null | sed -nE 's/^  ([a-z]+)  .*/\1/p') --help --version"
  elif [[ $word == -* ]]; then
    words=$("$program" "$command" --help 2>/dev/null | grep -oE '^ +--[a-z-]+' | tr -d ' ')
  else
    mapfile -t COMPREPLY < <(compgen -f -- "$word")
    return
  fi
  mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
}
complete -o filenames -F _weightcast weightcast
