"""Files and paths: safe names, reading what may be no ordinary file, writing atomically, locks. Imports errors and work/ of core."""
