from pfgm_fast.cli import main

raise SystemExit(main())
