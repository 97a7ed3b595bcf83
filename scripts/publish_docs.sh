#!/bin/sh
# Puts one build of the documentation into the branch gh-pages, beside those of the other versions:
#
#     scripts/publish_docs.sh main build/docs
#     scripts/publish_docs.sh 0.2.0 build/docs    the newest release is copied to stable/ as well
set -eu

name=$1
docs=$(realpath "$2")
site=$(mktemp -d)
export GIT_AUTHOR_NAME=documentation GIT_AUTHOR_EMAIL=documentation@localhost
export GIT_COMMITTER_NAME=$GIT_AUTHOR_NAME GIT_COMMITTER_EMAIL=$GIT_AUTHOR_EMAIL

if git fetch --quiet --depth 1 origin gh-pages; then
  start=FETCH_HEAD
else
  start=$(git commit-tree "$(git mktree </dev/null)" -m "The documentation of each version")
fi
git worktree add --quiet --detach "$site" "$start"
trap 'git worktree remove --force "$site"' EXIT

replace() {
  rm -rf "${site:?}/$1"
  cp -R "$docs" "$site/$1"
}
replace "$name"
newest=$(find "$site" -maxdepth 1 -regex '.*/[0-9.]+' -printf '%f\n' | sort -V | tail -n 1)
if [ "$name" = "$newest" ]; then replace stable; fi

first=main
if [ -d "$site/stable" ]; then first=stable; fi
printf '<!doctype html><meta charset="utf-8"><title>labelsmooth</title>%s\n' \
  "<meta http-equiv=\"refresh\" content=\"0; url=$first/\"><a href=\"$first/\">labelsmooth</a>" >"$site/index.html"
touch "$site/.nojekyll" # folders that begin with _ are served too

git -C "$site" add --all
if git -C "$site" diff --cached --quiet; then exit; fi
git -C "$site" commit --quiet -m "$name"
git -C "$site" push --quiet origin HEAD:refs/heads/gh-pages
