"""The git repository of a workspace: candidates, the branch, stale lock files."""
